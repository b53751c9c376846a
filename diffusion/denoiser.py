"""The reverse process: one step, from what is noisy to an estimate of what it was."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.layers import MaskMLP, Vectors, product


class Denoiser(nn.Module):
    """g([s, z, x]) = z + any(s) * MLP([s, z, x]), two layers, the last one started at zero.

    So a sample with every field is passed on exactly, always, and at first every sample is. Without the gate any(s) it
    is 1, and told nothing the MLP gets no s. columns: of x, the vectors of the fields that z was made of; 0: the MLP
    does not get x, as published.
    """

    def __init__(
        self, num_fields: int, latent_dim: int, hidden: int, *, columns: int = 0, gate: bool = True, told: bool = True
    ) -> None:
        super().__init__()
        self.gate = gate
        self.mask_width = num_fields if told else 0
        self.change = MaskMLP(latent_dim, self.mask_width, [hidden], latent_dim)
        self.fields = nn.Linear(columns, hidden, bias=False) if columns else None
        for parameter in self.change.rest.parameters():
            nn.init.zeros_(parameter)

    def forward(self, s: Tensor, z: Tensor, x: Vectors) -> Tensor:
        """z'_0 [B, Z] of s [B, N], in [0, 1], z [B, Z] and x [B, columns]."""
        hidden = self.change.first(z, s[:, : self.mask_width])
        if self.fields is not None:
            hidden = hidden + product(self.fields, x)
        change = self.change.rest(hidden.relu_())
        return torch.addcmul(z, s.amax(dim=1, keepdim=True), change) if self.gate else z + change
