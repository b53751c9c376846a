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
    """DCN-v2: explicit crosses of bounded degree, then a multilayer perceptron."""

    name: Literal["dcn"]
    cross_layers: PositiveInt = Field(
        default=3, description="number of cross layers; L of them reach crosses of degree L + 1"
    )
    rank: PositiveInt | None = Field(
        default=64,
        description="rank of each cross matrix, far below the columns of x; null: full matrices, columns squared each",
    )
    hidden: Sizes = Field(default=(128,), description="widths of the hidden layers after the crosses")


class Cross(nn.Module):
    """x_{l+1} = x_0 * (W x_l + b) + x_l, elementwise, with W = U V of a given rank or full; x_0, x_l [B, C]."""

    def __init__(self, columns: int, rank: int | None) -> None:
        super().__init__()
        self.weight = (
            nn.Linear(columns, columns)
            if rank is None
            else nn.Sequential(nn.Linear(columns, rank, bias=False), nn.Linear(rank, columns))
        )

    def forward(self, x_0: Tensor, x_l: Tensor) -> Tensor:
        return torch.addcmul(x_l, x_0, self.weight(x_l))


class DCN(Extractor):
    """z = MLP(x_L), x_0 = [x, s]: whether a field is there is crossed with what the others hold."""

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
        columns = sum(widths) + mask_width
        self.crosses = nn.ModuleList(Cross(columns, rank) for _ in range(cross_layers))
        self.deep = mlp([columns, *hidden, latent])

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        x_0 = torch.cat([x, s], dim=1)
        crossed = x_0
        for cross in self.crosses:
            crossed = cross(x_0, crossed)
        return self.deep(crossed)
