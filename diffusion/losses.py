"""The terms of the loss L = w_main L_main + w_recon L_recon + w_aux L_aux + w_distil L_distil.

Each term is the sum of weight_i * term_i over the B samples, divided by B and not by the sum of the weights. Therefore,
if several workers have equal parts of a batch, the mean of their terms is the term of the whole batch. The same holds
for the gradients. Losses are fp32, even if the layers before them use a lower precision.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def prediction_loss(logit: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return L_main or L_aux: BCE(y, sigmoid(logit)). logit, label (0 or 1) and weight are [B]."""
    return F.binary_cross_entropy_with_logits(logit, label, weight)


def reconstruction_loss(denoised: Tensor, clean_latent: Tensor, weight: Tensor) -> Tensor:
    """Return L_recon: the mean over the Z elements of (z'_0 - z_0)^2. denoised, clean_latent [B, Z], weight [B].

    With a sum over the Z elements, this loss would outweigh the prediction losses.
    """
    return (weight * (denoised.float() - clean_latent.float()).square().mean(dim=1)).mean()


def distillation_loss(teacher: Tensor, student: Tensor, weight: Tensor) -> Tensor:
    """Return L_distil: KL(sigmoid(teacher) || sigmoid(student)) of Bernoulli distributions; logits and weight are [B].

    The teacher gets no gradient. For logits a and b, KL = softplus(b) - softplus(a) - sigmoid(a) (b - a), the Bregman
    divergence of softplus.
    """
    teacher = teacher.detach()
    divergence = F.softplus(student) - F.softplus(teacher) - teacher.sigmoid() * (student - teacher)
    return (weight * divergence).mean()
