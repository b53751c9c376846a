"""Contrastive views: the latent of a complete sample must identify the latent of its masked view within the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from asymdiffrec.diffusion.losses import prediction_loss
from asymdiffrec.diffusion.methods import AsymmetricDiffusion

TEMPERATURE, WEIGHT = 0.2, 0.1


class Contrastive(AsymmetricDiffusion):
    """A network whose loss is BCE of both views plus InfoNCE (van den Oord et al., 2018) between their latents.

    The negatives of InfoNCE are the other samples in the batch of the worker.
    """

    def parts(
        self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of the loss by name."""
        clean_latent, noisy_latent, *_ = self.both_latents(clean, missing, sample_index)
        similarity = F.normalize(clean_latent.float()) @ F.normalize(noisy_latent.float()).t()
        contrast = F.cross_entropy(
            similarity / self.config.options.get("temperature", TEMPERATURE),
            torch.arange(len(clean), device=clean.device),
            reduction="none",
        )
        return {
            "main": prediction_loss(self.logit(clean_latent), label, weight),
            "aux": prediction_loss(self.logit(noisy_latent), label, weight),
            "contrast": self.config.options.get("weight", WEIGHT) * (weight * contrast).mean(),
        }
