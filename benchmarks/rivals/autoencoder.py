"""A denoising autoencoder before the extractor: it computes the vectors of missing fields from the other fields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asymdiffrec.diffusion.layers import MaskMLP
from asymdiffrec.diffusion.losses import prediction_loss
from asymdiffrec.diffusion.methods import AsymmetricDiffusion

HIDDEN = 128


class Autoencoder(AsymmetricDiffusion):
    """The extractor gets x for a present field, and MLP([x, mask]) for a missing field.

    Loss: BCE of both views, and the reconstruction error.
    """

    field_of_column: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width, num_fields = self.layout.total_width, self.layout.num_fields
        self.encoder = MaskMLP(width, num_fields, [self.config.options.get("hidden", HIDDEN)], width)
        self.register_buffer("field_of_column", self.layout.field_of_column, persistent=False)

    def parts(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of the loss by name."""
        noisy, mask = self.process(clean, missing, sample_index)
        restored = self.encoder(noisy.detach(), mask.to(noisy.dtype))
        present = ~missing[:, self.field_of_column]
        error = present * (restored - clean.detach()).square()
        return {
            "main": prediction_loss(self.score(clean, missing), label, weight),
            "aux": prediction_loss(self.score(noisy, mask), label, weight),
            "reconstruction": (weight * error.sum(1) / present.sum(1).clamp(min=1)).mean(),
        }

    def score(self, x: Tensor, missing: Tensor) -> Tensor:
        """Return logits [B], computed with the restored vectors of missing fields."""
        restored = self.encoder(x, missing.to(x.dtype))
        return self.logit(self.latent(torch.where(missing[:, self.field_of_column], restored, x), missing))
