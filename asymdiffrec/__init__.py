"""Recommendation models with very large embedding tables, made robust to missing features by asymmetric diffusion."""

from importlib.metadata import version

__version__ = version("asymdiffrec")
