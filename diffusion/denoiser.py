"""The reverse process in one step: estimate the clean latent from the noisy latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.layers import MaskMLP, Vectors, linear


class Denoiser(nn.Module):
    """The denoiser g([s, z, x]) = z + any(s) MLP([s, z, x]). The MLP has two layers; the last layer starts at zero.

    The factor any(s), called the gate, leaves z unchanged for a sample without missing fields. Before training, the
    denoiser returns z for every sample.

    num_fields: N.
    latent_dim: Z.
    hidden: width of the hidden layer.
    field_width: width of x, the field vectors from which z was computed; 0: the MLP does not read x, as published.
    gate: False replaces the factor any(s) by 1.
    sees_mask: False hides s from the MLP.
    """

    def __init__(
        self,
        num_fields: int,
        latent_dim: int,
        hidden: int,
        *,
        field_width: int = 0,
        gate: bool = True,
        sees_mask: bool = True,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.mask_width = num_fields if sees_mask else 0
        self.change = MaskMLP(latent_dim, self.mask_width, [hidden], latent_dim)
        self.fields = nn.Linear(field_width, hidden, bias=False) if field_width else None
        for parameter in self.change.rest.parameters():
            nn.init.zeros_(parameter)

    def forward(self, mask: Tensor, z: Tensor, x: Vectors) -> Tensor:
        """Return the denoised z'_0 [B, Z] for mask [B, N] with values in [0, 1], z [B, Z] and x [B, field_width]."""
        hidden = self.change.first(z, mask[:, : self.mask_width])
        if self.fields is not None:
            hidden = hidden + linear(self.fields, x)
        change = self.change.rest(hidden.relu_())
        return torch.addcmul(z, mask.amax(dim=1, keepdim=True), change) if self.gate else z + change
