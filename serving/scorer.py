"""The model for serving: embedding tables mapped from a file, and the dense part on CPU, optionally compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asymdiffrec.diffusion.methods import AsymmetricDiffusion
from asymdiffrec.embeddings.serving_tables import ServedTables

MAX_COMPILED_SAMPLES = 128
"""Largest batch, in samples, for which compiled code is used. Compiled code keeps Python's global lock while it runs,
so all other threads wait; for larger batches compiled code is hardly faster than PyTorch."""


@dataclass(frozen=True)
class CompiledDense:
    """The dense part of a `Scorer` as machine code, made by `aot_compile`."""

    join: Callable[..., torch.Tensor]
    """Replacement for `ServedTables.join`, for scores and rankings"""
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """Replacement for `AsymmetricDiffusion.score`"""


class Scorer(nn.Module):
    """A model on CPU that returns logits. Its embedding tables are mapped from a file.

    Set `compiled` to run the dense part as machine code for up to `MAX_COMPILED_SAMPLES` samples; None runs it in
    PyTorch.
    """

    def __init__(self, tables: ServedTables, diffusion: AsymmetricDiffusion) -> None:
        super().__init__()
        self.tables, self.diffusion = tables, diffusion
        self.compiled: CompiledDense | None = None

    def vectors(self, batch: Any) -> torch.Tensor:
        """Return the field vectors x [B, sum D_n] of a `Batch`."""
        compiled = self.compiled if len(batch) <= MAX_COMPILED_SAMPLES else None
        join = compiled.join if compiled else self.tables.join
        return join(*self.tables.look_up(batch))

    def logits(self, x: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """Return logits [B]: f(g([m, h(x), x])) for field vectors x [B, sum D_n] and the mask m = missing [B, N]."""
        compiled = self.compiled if len(x) <= MAX_COMPILED_SAMPLES else None
        return (compiled or self.diffusion).score(x, missing)

    def score(self, batch: Any) -> torch.Tensor:
        """Return logits [B] of a `Batch`."""
        return self.logits(self.vectors(batch), batch.missing)
