"""Batches of samples: the input of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from asymdiffrec.datasets.batching import gather
from asymdiffrec.datasets.batching.buffers import Buffers, FreshBuffers
from asymdiffrec.datasets.decoding.rows import Rows
from asymdiffrec.datasets.schema import IdListConfig, Schema

BATCHES_PER_CALL = 16
"""Number of batches that `split_into_batches` makes in one call of `to_batches`."""


@dataclass
class Batch(Pipelineable):
    """B samples: `num_samples` real samples, then padding.

    The last batches of an evaluation have padding: samples in which all fields are missing, with weight 0.
    """

    ids: KeyedJaggedTensor
    """The sparse fields, with ids in [0, `Table.id_range`); a missing field has no ids. If any field has weights, every
    id of every field has a weight. For mean pooling, the weights of a list are divided by their sum; without a weight
    column, each weight is 1 / (length of the list)."""
    numeric: torch.Tensor
    """[B, numeric fields] float, standardised; 0 where missing."""
    missing: torch.Tensor
    """[B, N] bool, with the fields in the order of the schema."""
    label: torch.Tensor
    """[B] float, 0 or 1."""
    weight: torch.Tensor
    """[B] float; 1 without a weight column."""
    user: torch.Tensor
    """[B] int64; 0 without a user column."""
    sample_index: torch.Tensor
    """[B] int64, index of the sample in the run (training) or in the split; its random numbers depend on it."""
    num_samples: int
    row_checksum: int = 0
    """`sample_order.row_checksums` of the training rows in this batch; 0 for other splits."""

    def __len__(self) -> int:
        return len(self.label)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Return the batch on a device."""
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell torch's allocator that `stream` uses the tensors."""
        for part in self._tensors().values():
            part.record_stream(stream)

    def _tensors(self) -> dict[str, Any]:
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("num_samples", "row_checksum")}

    def _map(self, function: Callable[[Any], Any]) -> Batch:
        return replace(self, **{name: function(part) for name, part in self._tensors().items()})


def to_batch(rows: Rows, schema: Schema, first_index: int, size: int | None = None) -> Batch:
    """Return a batch of all rows, in order, padded to `size` samples if `size` is given.

    `first_index` is the sample index of the first row.
    """
    order = np.arange(len(rows), dtype=np.int32).reshape(1, 1, -1)
    return to_batches([rows], order, schema, [first_index], size)[0]


def split_into_batches(rows: Rows, schema: Schema, size: int) -> Iterator[Batch]:
    """Yield batches of `size` rows, in order; the last batch may be smaller. Sample indices start at 0."""
    full_batches = len(rows) // size
    for first in range(0, full_batches, BATCHES_PER_CALL):
        starts = np.arange(first, min(first + BATCHES_PER_CALL, full_batches)) * size
        order = (starts[:, None] + np.arange(size)).astype(np.int32)
        yield from to_batches([rows], order[None], schema, starts.tolist())
    if full_batches * size < len(rows):
        yield to_batch(rows.slice(full_batches * size, len(rows)), schema, full_batches * size)


def to_batches(
    lanes: Sequence[Rows],
    order: np.ndarray,
    schema: Schema,
    first_indices: Sequence[int],
    size: int | None = None,
    buffers: Buffers | None = None,
) -> list[Batch]:
    """Return S batches of L * E samples. Batch s holds the rows `order[l, s]` of each lane l, lane after lane.

    lanes: the rows of the L lanes.
    order: [L, S, E] int32, row numbers within a lane.
    first_indices: [S], the sample index of the first sample of each batch.
    size: number of samples after padding; None: no padding.
    buffers: source of the memory of the batches.
    """
    num_samples, steps = order.shape[0] * order.shape[2], order.shape[1]
    size, buffers = size or num_samples, buffers or FreshBuffers()
    parts = {
        "lengths": buffers.empty(torch.int32, steps, len(schema.sparse), size),
        "numeric": buffers.empty(torch.float32, steps, size, len(schema.numeric)),
        "missing": buffers.empty(torch.bool, steps, len(schema.names), size),
        "label": buffers.empty(torch.float32, steps, size),
        "weight": buffers.empty(torch.float32, steps, size),
        "user": buffers.empty(torch.int64, steps, size),
    }
    if size > num_samples:
        for name, tensor in parts.items():
            (tensor[..., num_samples:] if name in ("lengths", "missing") else tensor[:, num_samples:]).zero_()
    sources = np.stack([rows.buffers for rows in lanes], axis=2)  # [columns, 3, L]
    values, weights = _fill_ids(sources, order, schema, parts, buffers)
    dense_parts = (parts[name].numpy() for name in ("numeric", "missing", "label", "weight", "user"))
    gather.fill_dense(sources, order, *dense_parts)
    parts["missing"][..., num_samples:] = True
    lengths, missing = parts.pop("lengths"), parts.pop("missing")
    return [
        Batch(
            ids=KeyedJaggedTensor(
                keys=list(schema.sparse),
                values=values[step],
                lengths=lengths[step].reshape(-1),
                weights=weights[step] if weights else None,
            ),
            missing=missing[step].t(),  # fields are written one after the other, so a field is contiguous in memory
            sample_index=torch.arange(first, first + size),
            num_samples=num_samples,
            row_checksum=0,
            **{name: tensor[step] for name, tensor in parts.items()},
        )
        for step, first in enumerate(first_indices)
    ]


def _fill_ids(
    sources: np.ndarray, order: np.ndarray, schema: Schema, parts: Mapping[str, torch.Tensor], buffers: Buffers
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor] | None]:
    """Fill `lengths` and the sparse fields of `missing` in `parts`.

    Returns the values of each step's KeyedJaggedTensor, and its weights if the schema has weights.
    """
    lengths, missing = parts["lengths"].numpy(), parts["missing"].numpy()
    capacity = gather.max_values(sources, order, len(schema.sparse))
    values = buffers.empty(torch.int64, int(capacity.sum()))
    begins = capacity.cumsum() - capacity
    ends = begins.copy()
    starts = gather.fill_ids(sources, order, values.numpy(), ends, lengths, missing)
    spans = list(zip(begins.tolist(), ends.tolist(), strict=True))
    values_by_step = [values[begin:end] for begin, end in spans]
    if not schema.weighted:
        return values_by_step, None

    weights = buffers.empty(torch.float32, len(values)).fill_(1)
    weight_columns = iter(sources[len(schema.sparse) :])
    for key, field in enumerate(schema.sparse.values()):
        if isinstance(field, IdListConfig):
            column = next(weight_columns)[0] if field.weights else np.zeros(len(order), np.int64)
            is_mean = field.pooling == "mean"
            gather.fill_weights(column, sources[key, 1], order, weights.numpy(), starts[key], is_mean)
    return values_by_step, [weights[begin:end] for begin, end in spans]
