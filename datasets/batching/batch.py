"""One batch of samples, as the model takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from asymdiffrec.datasets.batching import gather
from asymdiffrec.datasets.batching.buffers import Buffers, Fresh
from asymdiffrec.datasets.decoding.rows import Rows
from asymdiffrec.datasets.schema import IdListConfig, Schema

AT_ONCE = 16
"""Batches"""


@dataclass
class Batch(Pipelineable):
    """B samples. Rows from `counted` on are padding of the last batches of an evaluation: fields missing, weight 0."""

    ids: KeyedJaggedTensor
    """id and id_list fields, in the ranges of `Schema.id_range`; a missing field is a bag of length 0. With weights
    where a list of the schema has them: then every id has one, which includes the division of lists pooled by mean"""
    numeric: torch.Tensor
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
    ledger: int = 0
    """Which rows of the training split these are, as `order.ledgers` has it; 0 for other samples"""

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
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("counted", "ledger")
        }

    def _moved(self, move: Callable[[Any], Any]) -> Batch:
        return replace(self, **{name: move(part) for name, part in self._tensors().items()})


def to_batch(rows: Rows, schema: Schema, first_index: int, size: int | None = None) -> Batch:
    """The batch of some samples, in order; padded at the end to `size` samples where it is given."""
    order = np.arange(len(rows), dtype=np.int32).reshape(1, 1, -1)
    return to_batches([rows], order, schema, [first_index], size)[0]


def cut(rows: Rows, schema: Schema, size: int) -> Iterator[Batch]:
    """Batches of some samples, in order, of `size` but for the last one; many are made at once."""
    count = len(rows) // size
    for first in range(0, count, AT_ONCE):
        starts = np.arange(first, min(first + AT_ONCE, count)) * size
        order = (starts[:, None] + np.arange(size)).astype(np.int32)
        yield from to_batches([rows], order[None], schema, starts.tolist())
    if count * size < len(rows):
        yield to_batch(rows.slice(count * size, len(rows)), schema, count * size)


def to_batches(
    lanes: Sequence[Rows],
    order: np.ndarray,
    schema: Schema,
    first_indices: Sequence[int],
    size: int | None = None,
    buffers: Buffers | None = None,
) -> list[Batch]:
    """S batches of L * E samples: batch s has from each lane, in their order, its rows `order[l, s]`.

    `order` is [L, S, E] int32; `first_indices` [S] are the sample indices of each batch's first sample. Batches are
    padded to `size` samples where it is given, and lie in memory that `buffers` gives.
    """
    count, steps = order.shape[0] * order.shape[2], order.shape[1]
    size, buffers = size or count, buffers or Fresh()
    parts = {
        "lengths": buffers.empty(torch.int32, steps, len(schema.sparse), size),
        "numeric": buffers.empty(torch.float32, steps, size, len(schema.numeric)),
        "missing": buffers.empty(torch.bool, steps, len(schema.names), size),
        "label": buffers.empty(torch.float32, steps, size),
        "weight": buffers.empty(torch.float32, steps, size),
        "user": buffers.empty(torch.int64, steps, size),
    }
    if size > count:
        for name, tensor in parts.items():
            (tensor[..., count:] if name in ("lengths", "missing") else tensor[:, count:]).zero_()
    sources = np.stack([rows.buffers for rows in lanes], axis=2)  # [columns, 3, L]
    values, weights = _fill_ids(sources, order, schema, parts, buffers)
    beside = (parts[name].numpy() for name in ("numeric", "missing", "label", "weight", "user"))
    gather.fill_others(sources, order, *beside)
    parts["missing"][..., count:] = True
    lengths, missing = parts.pop("lengths"), parts.pop("missing")
    return [
        Batch(
            ids=KeyedJaggedTensor(
                keys=list(schema.sparse),
                values=values[step],
                lengths=lengths[step].reshape(-1),
                weights=weights[step] if weights else None,
            ),
            missing=missing[step].t(),  # a field's column is written at once, and stays in one piece
            sample_index=torch.arange(first, first + size),
            counted=count,
            ledger=0,
            **{name: tensor[step] for name, tensor in parts.items()},
        )
        for step, first in enumerate(first_indices)
    ]


def _fill_ids(
    sources: np.ndarray, order: np.ndarray, schema: Schema, parts: Mapping[str, torch.Tensor], buffers: Buffers
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor] | None]:
    """Fills `lengths` and their rows of `missing`; gives the values of each step's KeyedJaggedTensor, and their weights
    where there are."""
    lengths, missing = parts["lengths"].numpy(), parts["missing"].numpy()
    room = gather.id_totals(sources, order, len(schema.sparse))
    together = buffers.empty(torch.int64, int(room.sum()))
    begins = room.cumsum() - room
    ends = begins.copy()
    starts = gather.fill_ids(sources, order, together.numpy(), ends, lengths, missing)
    spans = list(zip(begins.tolist(), ends.tolist(), strict=True))
    values = [together[start:end] for start, end in spans]
    if not schema.weighted:
        return values, None

    shares = buffers.empty(torch.float32, len(together)).fill_(1)
    given = iter(sources[len(schema.sparse) :])
    for key, field in enumerate(schema.sparse.values()):
        if isinstance(field, IdListConfig):
            found = next(given)[0] if field.weights else np.zeros(len(order), np.int64)
            gather.fill_weights(found, sources[key, 1], order, shares.numpy(), starts[key], field.pooling == "mean")
    return values, [shares[start:end] for start, end in spans]
