"""The reverse process: one step in the latent space, from z_t to an estimate of z_0."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.layers import StepMLP


class Denoiser(nn.Module):
    """g([s, z]) = z + any(s) * MLP([s, z]), two layers, the last one started at zero.

    So a sample with every field is passed on exactly, always, and at first every sample is.
    """

    def __init__(self, num_fields: int, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.change = StepMLP(latent_dim, num_fields, [hidden], latent_dim)
        for parameter in self.change.rest.parameters():
            nn.init.zeros_(parameter)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """z'_0 [B, Z] of s [B, N], zeros and ones, and z [B, Z]."""
        return torch.addcmul(z, s.amax(dim=1, keepdim=True), self.change(z, s))
