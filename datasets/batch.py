"""One batch of samples, as the model takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """B samples. Rows from `counted` on are padding of the last batches of an evaluation: fields missing, weight 0."""

    ids: KeyedJaggedTensor
    """id and id_list fields, already rows of their tables; a missing field is a bag of length 0"""
    numbers: torch.Tensor
    """[B, number fields], standardised; 0 where missing"""
    missing: torch.Tensor
    """[B, N] bool, fields in the schema's order"""
    label: torch.Tensor
    """[B] float, 0 or 1"""
    weight: torch.Tensor
    """[B] float; 1 without a weight column"""
    user: torch.Tensor
    """[B] int64; 0 without a user column"""
    sample_index: torch.Tensor
    """[B] int64, the counter of the sample's random numbers: its place in the run (training) or in the split"""
    counted: int

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        return self._moved(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._moved(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for part in self._tensors().values():
            part.record_stream(stream)

    def _tensors(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "counted"}

    def _moved(self, move: Callable[[Any], Any]) -> Batch:
        return replace(self, **{name: move(part) for name, part in self._tensors().items()})
