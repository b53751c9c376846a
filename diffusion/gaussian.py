"""The forward process of DiffRec (Wang et al., SIGIR 2023) on the latent: normal noise instead of dropped fields."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.kernels.drop_fields_eager import noise_level
from asymdiffrec.diffusion.philox import uniforms


class GaussianProcess(nn.Module):
    """The process z_t = sqrt(1 - t) z_0 + sqrt(t) e with e ~ N(0, 1).

    quantiles: the quantile function of t, see `DropLaw`.
    seed: key of the random numbers.

    Random numbers come from `philox.uniforms`. Word 0 of lane 0 gives t. The words of lanes 1, 2, ... give e through
    the quantile function of the normal distribution.
    """

    quantiles: Tensor

    def __init__(self, quantiles: Tensor, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("quantiles", quantiles, persistent=False)

    def forward(self, z: Tensor, sample_index: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t [B, Z] and t [B] for z_0 [B, Z] and sample_index [B] int64."""
        draws = uniforms(self.seed, sample_index, lanes=1 + math.ceil(z.shape[1] / 4))
        t = noise_level(self.quantiles, draws[:, 0, 0])
        # Uniforms are multiples of 2**-24. Half of 2**-24 is added, because the normal quantile of 0 is infinite.
        centred = draws[:, 1:].flatten(1)[:, : z.shape[1]] + 2.0**-25
        noise = torch.special.ndtri(centred.double()).to(z.dtype)
        return (1 - t[:, None]).sqrt() * z + t[:, None].sqrt() * noise, t
