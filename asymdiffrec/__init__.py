"""Recommendation models with very large embedding tables, made robust to missing features by asymmetric diffusion."""

__version__ = "0.1.0"
