"""A small model of every method, and samples for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.methods import AsymmetricDiffusion
from asymdiffrec.field_layout import FieldLayout

FIELDS, WIDTH, BATCH = 6, 4, 64
LAYOUT = FieldLayout.from_widths([WIDTH] * FIELDS)

LOSS_TERMS = {
    "base": {"main"},
    "dropout": {"main"},
    "augment": {"main", "aux"},
    "asymdiff": {"main", "recon", "aux", "distil"},
}
"""Terms of the loss of each method"""

OTHER_CONFIGS: dict[str, dict[str, Any]] = {
    "indicators": {"method": "base", "mask_in_extractor": True},
    "mean": {"method": "base", "fill": "mean"},
    "filled": {"fill": "mean"},
    "gaussian": {"noise": "gaussian"},
    "symmetric": {"space": "fields"},
    "published": {"fields_in_denoiser": False},
    "without reconstruction": {"weights": {}},
    "no gate": {"gate": False},
    "no mask": {"mask_in_extractor": False, "mask_in_denoiser": False},
}
"""Diffusion configs besides the default config of each method"""


def build(extractor: str = "mlp", **diffusion: Any) -> AsymmetricDiffusion:
    """Return a model with the same initial weights at each call, with all terms of the loss."""
    torch.manual_seed(1)
    model = ModelConfig.model_validate({"extractor": {"name": extractor, "latent": 16}, "head": [8]})
    config = DiffusionConfig.model_validate({"weights": {"recon": 1}, **diffusion})
    return AsymmetricDiffusion(LAYOUT, model, config, seed=5)


def build_trained(extractor: str = "mlp", **diffusion: Any) -> AsymmetricDiffusion:
    """Return a model whose denoiser changes its input, as after training: its last layer is not zero."""
    model = build(extractor, **diffusion)
    if hasattr(model, "denoiser"):
        for parameter in model.denoiser.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


def samples(batch: int = BATCH, missing_rate: float = 0.1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return clean, missing, label, weight and sample_index; the label is a function of the fields without noise."""
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(batch, FIELDS, WIDTH, generator=generator)
    label = (vectors.sum((1, 2)) > 0).float()
    missing = torch.rand(batch, FIELDS, generator=generator) < missing_rate
    clean = vectors.masked_fill(missing[:, :, None], 0.0).flatten(1)
    return clean, missing, label, torch.rand(batch, generator=generator) + 0.5, torch.arange(batch) + 2**33


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the gradient of each parameter by name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
