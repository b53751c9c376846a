"""Decoded samples in columns: what lies between a Parquet row group and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets import columns
from asymdiffrec.datasets.schema import IdListConfig, Schema


@dataclass(frozen=True)
class Ragged:
    """Lists of varying length: row r holds values[offsets[r]:offsets[r + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def of_lengths(values: np.ndarray, lengths: np.ndarray) -> Ragged:
        return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))

    def slice(self, start: int, stop: int) -> Ragged:
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, rows: np.ndarray) -> Ragged:
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        source = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[source], offsets)

    @staticmethod
    def concatenate(parts: Sequence[Ragged]) -> Ragged:
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return Ragged.of_lengths(np.concatenate([part.values for part in parts]), lengths)


@dataclass(frozen=True)
class Rows:
    """R samples in columns. A missing id is -1; numbers are standardised, and NaN where they are missing."""

    ids: np.ndarray
    """[R, id fields] int64, rows of their tables"""
    lists: dict[str, Ragged]
    numbers: np.ndarray
    """[R, number fields] float32"""
    label: np.ndarray
    weight: np.ndarray
    user: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def slice(self, start: int, stop: int) -> Rows:
        return self._map(lambda values: values[start:stop], lambda lists: lists.slice(start, stop))

    def take(self, rows: np.ndarray) -> Rows:
        return self._map(lambda values: values.take(rows, axis=0), lambda lists: lists.take(rows))

    def _map(self, dense: Callable[[np.ndarray], np.ndarray], ragged: Callable[[Ragged], Ragged]) -> Rows:
        lists = {name: ragged(values) for name, values in self.lists.items()}
        others = (self.numbers, self.label, self.weight, self.user)
        return Rows(dense(self.ids), lists, *map(dense, others))

    @staticmethod
    def empty(schema: Schema) -> Rows:
        """No samples."""
        none = np.empty(0, np.int64)
        lists = {
            n: Ragged.of_lengths(none, none) for n, field in schema.hashed.items() if isinstance(field, IdListConfig)
        }
        ids = np.empty((0, len(schema.hashed) - len(lists)), np.int64)
        numbers, single = np.empty((0, len(schema.numbers)), np.float32), np.empty(0, np.float32)
        return Rows(ids, lists, numbers, label=single, weight=single, user=none)

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        parts = [part for part in parts if len(part)] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        return Rows(
            np.concatenate([part.ids for part in parts]),
            {name: Ragged.concatenate([part.lists[name] for part in parts]) for name in parts[0].lists},
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate([part.user for part in parts]),
        )


def decode(table: pa.Table, schema: Schema, place: str, labelled: bool) -> Rows:
    """The samples of an Arrow table; without `labelled`, label, weight and user are not read.

    Raises InputError with `place`, the column and the row where a value is out of what its field allows.
    """
    arrays = {name: table.column(name).combine_chunks() for name in table.column_names}
    count, data = table.num_rows, schema.data
    ids: list[np.ndarray] = []
    lists: dict[str, Ragged] = {}
    for name, field in schema.hashed.items():
        array, where = arrays[schema.column(name)], f"{place}, column {schema.column(name)}"
        if isinstance(field, IdListConfig):
            lists[name] = _lists(array, field, schema.table(name), where)
        else:
            ids.append(columns.id_rows(array, field, schema.table(name), where))
    numbers = np.empty((count, len(schema.numbers)), np.float32)
    for n, name in enumerate(schema.numbers):
        array, where = arrays[schema.column(name)], f"{place}, column {schema.column(name)}"
        numbers[:, n] = columns.standardised(array, schema.moments(name), where)

    def beside(name: str | None, convert: Callable[[pa.Array, str], np.ndarray], default: np.ndarray) -> np.ndarray:
        return convert(arrays[name], f"{place}, column {name}") if labelled and name else default

    return Rows(
        np.stack(ids, axis=1) if ids else np.empty((count, 0), np.int64),
        lists,
        numbers,
        label=beside(data.label, columns.labels, np.zeros(count, np.float32)),
        weight=beside(data.weight, columns.weights, np.ones(count, np.float32)),
        user=beside(data.user, columns.users, np.zeros(count, np.int64)),
    )


def _lists(array: pa.Array, field: IdListConfig, table: str, place: str) -> Ragged:
    values, lengths = columns.ragged(array)
    ends = np.cumsum(lengths)
    rows = columns.id_rows(values, field, table, place, lambda index: int(np.searchsorted(ends, index, side="right")))
    return Ragged.of_lengths(rows, lengths)
