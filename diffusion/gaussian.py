"""The forward process of DiffRec (Wang et al., SIGIR 2023), in the latent space: normal noise in place of drops."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.kernels.drop_fields_eager import time
from asymdiffrec.diffusion.philox import uniforms


class GaussianProcess(nn.Module):
    """z_t = sqrt(1 - t) z_0 + sqrt(t) e, e ~ N(0, 1), t by the quantiles of its law: see `DropLaw`.

    Randomness is `philox.uniforms`: lane 0 word 0 is t, the words of lanes 1 on become e by the normal's quantiles.
    """

    quantiles: Tensor

    def __init__(self, quantiles: Tensor, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("quantiles", quantiles, persistent=False)

    def forward(self, z: Tensor, sample_index: Tensor) -> tuple[Tensor, Tensor]:
        """z_t [B, Z] and t [B] of z_0 [B, Z] and sample_index [B] int64."""
        draws = uniforms(self.seed, sample_index, lanes=1 + math.ceil(z.shape[1] / 4))
        t = time(self.quantiles, draws[:, 0, 0])
        centred = draws[:, 1:].flatten(1)[:, : z.shape[1]] + 2.0**-25  # of 2**24 equal cells, so that none is 0
        noise = torch.special.ndtri(centred.double()).to(z.dtype)
        return (1 - t[:, None]).sqrt() * z + t[:, None].sqrt() * noise, t
