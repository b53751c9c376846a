"""One batch of samples, as the model takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from asymdiffrec.datasets import gather
from asymdiffrec.datasets.hashing import row_type
from asymdiffrec.datasets.room import Room
from asymdiffrec.datasets.rows import Rows
from asymdiffrec.datasets.schema import IdListConfig, Schema


@dataclass
class Batch(Pipelineable):
    """B samples. Rows from `counted` on are padding of the last batches of an evaluation: fields missing, weight 0."""

    ids: KeyedJaggedTensor
    """id and id_list fields, already rows of their tables; a missing field is a bag of length 0. With weights where a
    list of the schema has them: then every id has one, which includes the division of lists pooled by mean"""
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
    """The batch of some samples, in order; padded at the end to `size` samples where it is given."""
    order = np.arange(len(rows), dtype=np.int32).reshape(1, 1, -1)
    return to_batches([rows], order, schema, [first_index], size)[0]


def to_batches(
    lanes: Sequence[Rows],
    order: np.ndarray,
    schema: Schema,
    first_indices: Sequence[int],
    size: int | None = None,
    room: Room | None = None,
) -> list[Batch]:
    """S batches of L * E samples: batch s has from each lane, in their order, its rows `order[l, s]`.

    `order` is [L, S, E] int32; `first_indices` [S] are the sample indices of each batch's first sample. Batches are
    padded to `size` samples where it is given, and lie in memory that `room` gives.
    """
    count, steps = order.shape[0] * order.shape[2], order.shape[1]
    size, room = size or count, room or Room()
    parts = {
        "lengths": room.empty(torch.int32, steps, len(schema.hashed), size),
        "numbers": room.empty(torch.float32, steps, size, len(schema.numbers)),
        "missing": room.empty(torch.bool, steps, size, len(schema.names)),
        "label": room.empty(torch.float32, steps, size),
        "weight": room.empty(torch.float32, steps, size),
        "user": room.empty(torch.int64, steps, size),
    }
    if size > count:
        for name, tensor in parts.items():
            (tensor[..., count:] if name == "lengths" else tensor[:, count:]).zero_()
    sources = np.stack([rows.buffers for rows in lanes], axis=2)  # [columns, 2, L]
    values, weights = _fill_ids(sources, order, schema, parts, room)
    _fill_others(sources, order, schema, parts)
    parts["missing"][:, count:] = True
    lengths = parts.pop("lengths")
    return [
        Batch(
            ids=KeyedJaggedTensor(
                keys=list(schema.hashed),
                values=values[step],
                lengths=lengths[step].reshape(-1),
                weights=weights[step] if weights else None,
            ),
            sample_index=torch.arange(first, first + size),
            counted=count,
            **{name: tensor[step] for name, tensor in parts.items()},
        )
        for step, first in enumerate(first_indices)
    ]


def _fill_ids(
    sources: np.ndarray, order: np.ndarray, schema: Schema, parts: Mapping[str, torch.Tensor], room: Room
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor] | None]:
    """Fills `lengths` and their columns of `missing`; gives the values of each step's KeyedJaggedTensor, and their
    weights where there are."""
    fields = [(field, row_type(field.rows)) for field in schema.hashed.values()]
    steps, keys, size = parts["lengths"].shape
    lengths = _addresses(parts["lengths"])
    counts = np.empty((steps, keys, len(order)), np.int64)
    for key, (field, word) in enumerate(fields):
        found, offsets = sources[key]
        if isinstance(field, IdListConfig):
            gather.list_lengths(offsets, order, lengths, key * size, counts[:, key])
        else:
            gather.id_lengths(found, order, lengths, key * size, counts[:, key], word)
    gather.mark_missing(lengths, _addresses(parts["missing"]), keys, size, parts["missing"].shape[2])

    # Steps lie one after another, keys within a step, and lanes within a key; each step has one place to spare.
    places = (counts.cumsum() - counts.reshape(-1)).reshape(counts.shape) + np.arange(steps)[:, None, None]
    totals = counts.sum(axis=(1, 2)) + 1
    together = room.empty(torch.int64, int(totals.sum()))
    targets = np.full(steps, together.data_ptr())
    for key, (field, word) in enumerate(fields):
        found, offsets = sources[key]
        if isinstance(field, IdListConfig):
            gather.fill_lists(found, offsets, order, targets, places[:, key], word)
        else:
            gather.fill_ids(found, order, targets, places[:, key], word)
    values = [own[:-1] for own in together.split(totals.tolist())]
    if not schema.weighted:
        return values, None

    shares = room.empty(torch.float32, len(together)).fill_(1)
    targets = np.full(steps, shares.data_ptr())
    given = iter(sources[keys:])
    for key, (field, _) in enumerate(fields):
        if isinstance(field, IdListConfig):
            found = next(given)[0] if field.weights else np.zeros(len(order), np.int64)
            gather.fill_weights(found, sources[key][1], order, targets, places[:, key], field.pooling == "mean")
    return values, [own[:-1] for own in shares.split(totals.tolist())]


def _fill_others(sources: np.ndarray, order: np.ndarray, schema: Schema, parts: Mapping[str, torch.Tensor]) -> None:
    """Fills `numbers` and their columns of `missing`, and what stands beside the fields."""
    width, skip = len(schema.numbers), len(schema.hashed)
    targets = {name: _addresses(tensor) for name, tensor in parts.items()}
    *_, label, weight, user = sources
    for place, number in enumerate(sources[len(sources) - 3 - width : -3]):
        gather.fill_numbers(number[0], order, targets["numbers"], targets["missing"], place, width, skip)
    for name, column, word in (("label", label, np.int32), ("weight", weight, np.int32), ("user", user, np.int64)):
        gather.fill_words(column[0], order, targets[name], word)


def _addresses(tensor: torch.Tensor) -> np.ndarray:
    """Where the parts along the first dimension of a tensor lie in memory."""
    return tensor.data_ptr() + np.arange(len(tensor)) * tensor.stride(0) * tensor.itemsize
