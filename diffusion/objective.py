"""The parts of L = w_main L_main + w_recon L_recon + w_aux L_aux + w_distil L_distil.

Each is mean_i(weight_i * part_i) over the B samples, divided by B and not by the sum of the weights: linear in the
samples, so that equal shares of a batch on several workers average to the batch's own loss and gradient. Losses are
fp32, whatever the products before them were made in.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def prediction_loss(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """L_main and L_aux: BCE(y, sigmoid(logit)); logit, label in {0, 1} and weight are [B]."""
    return F.binary_cross_entropy_with_logits(logit, label, weight)


def reconstruction_loss(denoised: Tensor, clean_latent: Tensor, weight: Tensor) -> Tensor:
    """L_recon: mean over the Z elements of (z'_0 - z_0)^2; denoised and clean_latent are [B, Z], weight [B].

    The mean, never the sum: summed, it drowns the prediction.
    """
    return (weight * (denoised.float() - clean_latent.float()).square().mean(dim=1)).mean()


def distillation_loss(teacher: Tensor, student: Tensor, weight: Tensor) -> Tensor:
    """L_distil: KL from sigmoid(teacher), behind a stop-gradient, to sigmoid(student), as Bernoullis; logits [B].

    KL = softplus(b) - softplus(a) - sigmoid(a) (b - a) for logits a and b: the Bregman divergence of softplus.
    """
    teacher = teacher.detach()
    divergence = F.softplus(student) - F.softplus(teacher) - teacher.sigmoid() * (student - teacher)
    return (weight * divergence).mean()
