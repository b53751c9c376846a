"""The dense layers of extractors, denoiser and head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Candidates:
    """A tensor x [B, C] for B candidates of Q queries. The shared columns of a query are stored once.

    The candidates of a query have the same values in most columns. A linear layer multiplies these shared columns once
    per query, see `linear`.
    """

    shared: Tensor
    """[Q, C], zero in the columns that differ between candidates"""
    query: Tensor
    """[B] int64, the index of the query of each candidate"""
    values: Tensor
    """[B, K], the values of the columns that differ between candidates"""
    columns: Tensor
    """[K] int64, the indices in x of the columns that differ between candidates"""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of x."""
        return self.values.dtype

    def expand(self) -> Tensor:
        """Return x [B, C]."""
        return self.shared.index_select(0, self.query).index_copy_(1, self.columns, self.values)


Vectors = Tensor | Candidates
"""x [B, C]: one tensor, or candidates with shared columns"""


def expanded(x: Vectors) -> Tensor:
    """Return x as one tensor [B, C]."""
    return x.expand() if isinstance(x, Candidates) else x


def linear(layer: nn.Linear, x: Vectors) -> Tensor:
    """Return layer(x) [B, outputs]; shared columns of candidates are multiplied once per query."""
    if not isinstance(x, Candidates):
        result: Tensor = layer(x)
        return result
    shared = layer(x.shared).index_select(0, x.query)
    return torch.addmm(shared, x.values, layer.weight.t().index_select(0, x.columns))


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Return linear layers from width sizes[0] to width sizes[-1], with a ReLU after each layer except the last.

    The ReLUs work in place. Autograd allows this: the backward pass of a ReLU needs only the output of the ReLU, which
    is also the input of the next linear layer.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class MaskLinear(nn.Module):
    """The linear layer W [x, s] + b, computed as W_x x + W_s s + b without concatenating x and s.

    The layer maps x [B, inputs] and the mask s [B, mask_width] to [B, outputs]. Its initial weights have the same
    distribution as in `nn.Linear(inputs + mask_width, outputs)`.
    """

    def __init__(self, inputs: int, mask_width: int, outputs: int) -> None:
        super().__init__()
        self.x = nn.Linear(inputs, outputs)
        self.s = nn.Linear(mask_width, outputs, bias=False) if mask_width else None
        bound = 1 / math.sqrt(inputs + mask_width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Vectors, mask: Tensor) -> Tensor:
        """Return [B, outputs] for x [B, inputs] and mask [B, mask_width]."""
        outputs = linear(self.x, x)
        return outputs if self.s is None else torch.addmm(outputs, mask, self.s.weight.t())


class MaskMLP(nn.Module):
    """An MLP of [x, s]: hidden layers with ReLU, then a linear layer."""

    def __init__(self, inputs: int, mask_width: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.first = MaskLinear(inputs, mask_width, hidden[0])
        self.rest = mlp([*hidden, outputs])

    def forward(self, x: Vectors, mask: Tensor) -> Tensor:
        """Return [B, outputs] for x [B, inputs] and mask [B, mask_width]."""
        outputs: Tensor = self.rest(self.first(x, mask).relu_())
        return outputs
