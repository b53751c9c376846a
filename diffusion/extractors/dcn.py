"""DCN-v2: Wang et al., "DCN V2: Improved Deep & Cross Network" (WWW 2021), in its stacked form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from asymdiffrec.diffusion.extractors.base import Extractor, ExtractorConfig, Sizes
from asymdiffrec.diffusion.layers import mlp


class DCNConfig(ExtractorConfig):
    """DCN-v2: explicit crosses of bounded degree, then an MLP."""

    name: Literal["dcn"]
    cross_layers: PositiveInt = Field(
        default=3, description="number of cross layers; L layers reach crosses of degree L + 1"
    )
    rank: PositiveInt | None = Field(
        default=64,
        description="rank of each cross matrix, usually far below the width of x; null: full matrices [width, width]",
    )
    hidden: Sizes = Field(default=(128,), description="widths of the hidden layers after the cross layers")


class Cross(nn.Module):
    """The cross layer x_{l+1} = x_0 * (W x_l + b) + x_l. The product * is elementwise.

    W is a product U V of rank `rank`; if `rank` is None, W is a full matrix.
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.weight = (
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
        )

    def forward(self, x_0: Tensor, x_l: Tensor) -> Tensor:
        """Return x_{l+1} [B, C] for x_0 and x_l [B, C]."""
        return torch.addcmul(x_l, x_0, self.weight(x_l))


class DCN(Extractor):
    """The extractor z = MLP(x_L) with x_0 = [x, s]: the mask is crossed with the field vectors."""

    def __init__(
        self,
        widths: Sequence[int],
        mask_width: int,
        *,
        cross_layers: int,
        rank: int | None,
        hidden: Sequence[int],
        latent: int,
    ) -> None:
        super().__init__()
        self.latent_dim = latent
        width = sum(widths) + mask_width
        self.crosses = nn.ModuleList(Cross(width, rank) for _ in range(cross_layers))
        self.deep = mlp([width, *hidden, latent])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the latent [B, Z], see `Extractor.forward`."""
        x_0 = torch.cat([x, mask], dim=1)
        crossed = x_0
        for cross in self.crosses:
            crossed = cross(x_0, crossed)
        return self.deep(crossed)
