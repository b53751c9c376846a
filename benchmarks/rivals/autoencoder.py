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

    columns: Tensor

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        columns = sum(self.widths)
        self.encoder = MaskMLP(columns, len(self.widths), [self.config.options.get("hidden", HIDDEN)], columns)
        counts = torch.tensor(self.widths)
        self.register_buffer("columns", torch.arange(len(counts)).repeat_interleave(counts), persistent=False)

    def parts(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> dict[str, Tensor]:
        noisy, step = self.process(clean, missing, sample_index)
        made = self.encoder(noisy.detach(), step.to(noisy.dtype))
        known = ~missing[:, self.columns]
        error = known * (made - clean.detach()).square()
        return {
            "main": prediction_loss(self.score(clean, missing), label, weight),
            "aux": prediction_loss(self.score(noisy, step), label, weight),
            "made": (weight * error.sum(1) / known.sum(1).clamp(min=1)).mean(),
        }

    def score(self, x: Tensor, missing: Tensor) -> Tensor:
        made = self.encoder(x, missing.to(x.dtype))
        return self.logit(self.latent(torch.where(missing[:, self.columns], made, x), missing))
