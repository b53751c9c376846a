"""A denoising autoencoder before the extractor: missing fields get the vectors that it makes of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asymdiffrec.diffusion.layers import MaskMLP
from asymdiffrec.diffusion.model import AsymmetricDiffusion
from asymdiffrec.diffusion.objective import prediction_loss

HIDDEN = 128


class Autoencoder(AsymmetricDiffusion):
    """x' = x where a field is there, MLP([x, s]) where it is not; BCE of both views, and the error of what was made."""

    field_of_column: Tensor

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        width, num_fields = self.layout.total_width, self.layout.num_fields
        self.encoder = MaskMLP(width, num_fields, [self.config.options.get("hidden", HIDDEN)], width)
        self.register_buffer("field_of_column", self.layout.field_of_column, persistent=False)

    def parts(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> dict[str, Tensor]:
        noisy, mask = self.process(clean, missing, sample_index)
        made = self.encoder(noisy.detach(), mask.to(noisy.dtype))
        known = ~missing[:, self.field_of_column]
        error = known * (made - clean.detach()).square()
        return {
            "main": prediction_loss(self.score(clean, missing), label, weight),
            "aux": prediction_loss(self.score(noisy, mask), label, weight),
            "made": (weight * error.sum(1) / known.sum(1).clamp(min=1)).mean(),
        }

    def score(self, x: Tensor, missing: Tensor) -> Tensor:
        made = self.encoder(x, missing.to(x.dtype))
        return self.logit(self.latent(torch.where(missing[:, self.field_of_column], made, x), missing))
