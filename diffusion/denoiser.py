"""The reverse process: one step, from what is noisy to an estimate of what it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.layers import StepMLP


class Denoiser(nn.Module):
    """g([s, z]) = z + any(s) * MLP([s, z]), two layers, the last one started at zero.

    So a sample with every field is passed on exactly, always, and at first every sample is. Without the gate any(s) it
    is 1, and told nothing the MLP gets z alone.
    """

    def __init__(self, num_fields: int, latent_dim: int, hidden: int, *, gate: bool = True, told: bool = True) -> None:
        super().__init__()
        self.gate = gate
        self.step_width = num_fields if told else 0
        self.change = StepMLP(latent_dim, self.step_width, [hidden], latent_dim)
        for parameter in self.change.rest.parameters():
            nn.init.zeros_(parameter)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """z'_0 [B, Z] of s [B, N], in [0, 1], and z [B, Z]."""
        change = self.change(z, s[:, : self.step_width])
        return torch.addcmul(z, s.amax(dim=1, keepdim=True), change) if self.gate else z + change
