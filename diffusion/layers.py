"""The dense layers that extractors, denoiser and head are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Candidates:
    """x [B, C] of samples of Q queries, those of a query differing in some columns alone: what is linear in x needs the
    common part once."""

    common: Tensor
    """[Q, C], zero in the columns that differ"""
    query: Tensor
    """[B] int64, whose each is"""
    own: Tensor
    """[B, the columns that differ]"""
    columns: Tensor
    """Which these are, int64"""

    @property
    def dtype(self) -> torch.dtype:
        return self.own.dtype

    def whole(self) -> Tensor:
        """x [B, C]"""
        return self.common.index_select(0, self.query).index_copy_(1, self.columns, self.own)


Vectors = Tensor | Candidates
"""x [B, C], whole or in parts"""


def whole(x: Vectors) -> Tensor:
    return x.whole() if isinstance(x, Candidates) else x


def product(layer: nn.Linear, x: Vectors) -> Tensor:
    """The layer of x, [B, outputs]."""
    if not isinstance(x, Candidates):
        result: Tensor = layer(x)
        return result
    of_query = layer(x.common).index_select(0, x.query)
    return torch.addmm(of_query, x.own, layer.weight.t().index_select(0, x.columns))


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1] with a ReLU between each two; none after the last.

    In place: the backward pass of a linear layer needs its input, that of a ReLU its result, which are one tensor.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class MaskLinear(nn.Module):
    """W [x, s] + b without the concatenation: W_x x + W_s s + b; x [B, inputs], s [B, mask_width] -> [B, outputs].

    Started as one `nn.Linear` of inputs + mask_width columns would be.
    """

    def __init__(self, inputs: int, mask_width: int, outputs: int) -> None:
        super().__init__()
        self.x = nn.Linear(inputs, outputs)
        self.s = nn.Linear(mask_width, outputs, bias=False) if mask_width else None
        bound = 1 / math.sqrt(inputs + mask_width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Vectors, s: Tensor) -> Tensor:
        of_x = product(self.x, x)
        return of_x if self.s is None else torch.addmm(of_x, s, self.s.weight.t())


class MaskMLP(nn.Module):
    """[x, s] through hidden layers with ReLU; x [B, inputs], s [B, mask_width] -> [B, outputs], linear at the end."""

    def __init__(self, inputs: int, mask_width: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.first = MaskLinear(inputs, mask_width, hidden[0])
        self.rest = mlp([*hidden, outputs])

    def forward(self, x: Vectors, s: Tensor) -> Tensor:
        hidden: Tensor = self.rest(self.first(x, s).relu_())
        return hidden
