"""The dense layers that extractors, denoiser and head are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1] with a ReLU between each two; none after the last.

    In place: the backward pass of a linear layer needs its input, that of a ReLU its result, which are one tensor.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class StepLinear(nn.Module):
    """W [x, s] + b without the concatenation: W_x x + W_s s + b; x [B, inputs], s [B, step_width] -> [B, outputs].

    Started as one `nn.Linear` of inputs + step_width columns would be.
    """

    def __init__(self, inputs: int, step_width: int, outputs: int) -> None:
        super().__init__()
        self.x = nn.Linear(inputs, outputs)
        self.s = nn.Linear(step_width, outputs, bias=False) if step_width else None
        bound = 1 / math.sqrt(inputs + step_width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        product = self.x(x)
        return product if self.s is None else torch.addmm(product, s, self.s.weight.t())


class StepMLP(nn.Module):
    """[x, s] through hidden layers with ReLU; x [B, inputs], s [B, step_width] -> [B, outputs], linear at the end."""

    def __init__(self, inputs: int, step_width: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.first = StepLinear(inputs, step_width, hidden[0])
        self.rest = perceptron([*hidden, outputs])

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.rest(self.first(x, s).relu_())
