"""The model of one rank: the look-up in the embedding tables, and the dense part."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from asymdiffrec.diffusion.methods import AsymmetricDiffusion


class LabelledBatch(Protocol):
    """The attributes of a batch that `Recommender` itself reads; the tables read further attributes."""

    label: Tensor
    weight: Tensor
    sample_index: Tensor


class Recommender(nn.Module):
    """A module that looks up the field vectors and applies the dense part. A train pipeline splits it at the look-up.

    tables: a module that maps a batch to clean [B, sum D_n] and missing [B, N] bool.
    """

    def __init__(self, tables: nn.Module, diffusion: AsymmetricDiffusion) -> None:
        super().__init__()
        self.tables = tables
        self.diffusion = diffusion

    def forward(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the batch and the values for the log, see `AsymmetricDiffusion.forward`."""
        clean, missing = self.tables(batch)
        return self.diffusion(clean, missing, batch.label, batch.weight, batch.sample_index)

    def score(self, batch: LabelledBatch) -> Tensor:
        """Return the logits [B] of the batch, see `AsymmetricDiffusion.score`."""
        return self.diffusion.score(*self.tables(batch))
