"""One batch of samples, as the model takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from asymdiffrec.datasets.rows import Rows
from asymdiffrec.datasets.schema import Schema


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


def to_batch(rows: Rows, schema: Schema, first_index: int, size: int | None = None) -> Batch:
    """The batch of some samples, in order; padded at the end to `size` rows where it is given."""
    count = len(rows)
    size = size or count
    values, lengths = [], np.zeros((len(schema.hashed), size), dtype=np.int32)
    ids = iter(np.ascontiguousarray(rows.ids.T))
    for key, name in enumerate(schema.hashed):
        if name in rows.lists:
            values.append(rows.lists[name].values)
            lengths[key, :count] = np.diff(rows.lists[name].offsets)
        else:
            column = next(ids)
            values.append(column[column >= 0])
            lengths[key, :count] = column >= 0
    numbers = _padded(rows.numbers, size, np.nan)
    absent = np.isnan(numbers)
    return Batch(
        ids=KeyedJaggedTensor(
            keys=list(schema.hashed),
            values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(lengths.reshape(-1)),
        ),
        numbers=torch.from_numpy(np.where(absent, np.float32(0), numbers)),
        missing=torch.from_numpy(np.concatenate([lengths.T == 0, absent], axis=1)),
        label=torch.from_numpy(_padded(rows.label, size, 0)),
        weight=torch.from_numpy(_padded(rows.weight, size, 0)),
        user=torch.from_numpy(_padded(rows.user, size, 0)),
        sample_index=torch.arange(first_index, first_index + size),
        counted=count,
    )


def _padded(values: np.ndarray, size: int, fill: float) -> np.ndarray:
    widths = [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, widths, constant_values=fill) if size > len(values) else values
