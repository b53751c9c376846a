"""Look-up and update of one embedding table in fp64, as a reference for FBGEMM's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

RATE, EPS, BETAS = 0.05, 1e-8, (0.9, 0.999)
OPTIMIZERS = ("adagrad", "rowwise_adagrad", "sgd", "adam")


class ReferenceTable:
    """A table [R, D] in fp64 on the CPU, with its optimizer state. Bags of ids are pooled by a weighted sum."""

    def __init__(self, weight: Tensor, optimizer: str) -> None:
        self.weight, self.optimizer, self.steps = weight.double().cpu(), optimizer, 0
        self.first, self.second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)

    def look_up(self, ids: Tensor, bags: Tensor, weights: Tensor, num_bags: int) -> Tensor:
        """Return the pooled vectors [num_bags, D] of ids [L]. bags, weights [L]: bag and weight of each id."""
        rows = self.weight[ids] * weights[:, None]
        return torch.zeros(num_bags, self.weight.shape[1], dtype=torch.float64).index_add_(0, bags, rows)

    def update(self, ids: Tensor, bags: Tensor, weights: Tensor, upstream: Tensor) -> None:
        """Take an optimizer step. Rows that were not looked up do not change.

        upstream: gradient of the pooled vectors, [num_bags, D].
        """
        gradient = torch.zeros_like(self.weight).index_add_(0, ids, upstream[bags] * weights[:, None])
        rows, self.steps = ids.unique(), self.steps + 1
        self.weight[rows] -= RATE * self._change(rows, gradient[rows])

    def _change(self, rows: Tensor, gradient: Tensor) -> Tensor:
        if self.optimizer == "sgd":
            return gradient
        if self.optimizer == "adam":
            self.first[rows] = BETAS[0] * self.first[rows] + (1 - BETAS[0]) * gradient
            self.second[rows] = BETAS[1] * self.second[rows] + (1 - BETAS[1]) * gradient.square()
            mean = self.first[rows] / (1 - BETAS[0] ** self.steps)
            square = self.second[rows] / (1 - BETAS[1] ** self.steps)
            return mean / (square.sqrt() + EPS)
        square = gradient.square()
        self.first[rows] += square if self.optimizer == "adagrad" else square.mean(dim=1, keepdim=True)
        return gradient / (self.first[rows].sqrt() + EPS)
