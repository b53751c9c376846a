"""Decoded row groups: those that a worker's lanes are in, and as many of those before as its cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from asymdiffrec.datasets.decoding.rows import Rows, decode
from asymdiffrec.datasets.sample_order import Slice
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards

Windows = Sequence[tuple[Rows, int]]
"""For each lane the rows that its window lies in, and the place of the window's first row among them"""


class OpenRowGroups:
    """A worker's. A row group that two lanes share is read at its two ends, so those touched last are kept."""

    def __init__(self, schema: Schema, shards: Shards, cache: int, pool: ThreadPoolExecutor) -> None:
        self._schema, self._shards, self._cache, self._pool = schema, shards, cache, pool
        self._open: dict[int, Rows] = {}

    def windows(self, lanes: Sequence[Sequence[Slice]]) -> Windows:
        """The windows of some lanes, out of row groups that are decoded whole, once for all their windows."""
        needed = dict.fromkeys(part.row_group for parts in lanes for part in parts)
        opened = [group for group in needed if group not in self._open]
        kept = {group: self._open.pop(group) for group in needed if group in self._open}
        self._shrink()
        self._open |= kept
        decoded = self._pool.map(partial(decode_rows, self._schema, self._shards), opened)
        self._open |= zip(opened, decoded, strict=True)
        return [self._window(parts) for parts in lanes]

    def _window(self, parts: Sequence[Slice]) -> tuple[Rows, int]:
        if len(parts) == 1:
            return self._open[parts[0].row_group], parts[0].start
        return Rows.concatenate([self._open[part.row_group].slice(part.start, part.stop) for part in parts]), 0

    def _shrink(self) -> None:
        """Forget the row groups that were put in first until the others fit into the cache."""
        held = sum(rows.nbytes for rows in self._open.values())
        while held > self._cache:
            held -= self._open.pop(next(iter(self._open))).nbytes


def decode_rows(schema: Schema, shards: Shards, row_group: int) -> Rows:
    """A row group as samples. Raises InputError where it cannot be read, or holds what fields do not allow."""
    names = schema.columns(labelled=True)
    return decode(shards.read(row_group, names), schema, shards.place(row_group), labelled=True)
