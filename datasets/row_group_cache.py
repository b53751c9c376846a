"""Decoded row groups in memory: the row groups that lanes read now, and a cache of row groups that they read before."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from asymdiffrec.datasets.decoding.rows import Rows, decode
from asymdiffrec.datasets.sample_order import Slice
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards

Windows = Sequence[tuple[Rows, int]]
"""For each lane: the rows that contain its window, and the index of the window's first row in them."""


class RowGroupCache:
    """The decoded row groups of one worker, with a least-recently-used cache of `limit` bytes.

    Two neighbouring lanes can share a row group: one lane reads its first rows, the other lane its last rows, at
    different times. The cache saves the second decoding.
    """

    def __init__(self, schema: Schema, shards: Shards, limit: int, pool: ThreadPoolExecutor) -> None:
        self._schema, self._shards, self._limit, self._pool = schema, shards, limit, pool
        self._rows: dict[int, Rows] = {}  # by row group, in order of use

    def windows(self, lanes: Sequence[Sequence[Slice]]) -> Windows:
        """Return the windows of some lanes, given as slices of row groups; decode row groups that are not in memory."""
        needed = dict.fromkeys(part.row_group for parts in lanes for part in parts)
        absent = [group for group in needed if group not in self._rows]
        present = {group: self._rows.pop(group) for group in needed if group in self._rows}
        self._shrink()
        self._rows |= present
        decoded = self._pool.map(partial(decode_row_group, self._schema, self._shards), absent)
        self._rows |= zip(absent, decoded, strict=True)
        return [self._window(parts) for parts in lanes]

    def _window(self, parts: Sequence[Slice]) -> tuple[Rows, int]:
        if len(parts) == 1:
            return self._rows[parts[0].row_group], parts[0].start
        return Rows.concatenate([self._rows[part.row_group].slice(part.start, part.stop) for part in parts]), 0

    def _shrink(self) -> None:
        """Remove the least recently used row groups until the other ones fit into the limit."""
        size = sum(rows.nbytes for rows in self._rows.values())
        while size > self._limit:
            size -= self._rows.pop(next(iter(self._rows))).nbytes


def decode_row_group(schema: Schema, shards: Shards, row_group: int) -> Rows:
    """Read and decode a row group. Raises InputError if it cannot be read or a value is not allowed."""
    names = schema.columns(labelled=True)
    return decode(shards.read(row_group, names), schema, shards.location_of(row_group), labelled=True)
