"""Decoded samples in columns: what lies between a Parquet row group and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.datasets import columns
from asymdiffrec.datasets.batch import Batch
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.datasets.shards import Shards


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


def check_columns(schema: Schema, shards: Shards, labelled: bool) -> None:
    """Raise InputError where a file lacks a column that is needed or holds it in a type that cannot serve."""
    data = schema.data
    for file, arrow in zip(shards.files, shards.schemas, strict=True):
        for name, field in schema.fields.items():
            kind = _column_type(arrow, schema.column(name), file, f"field {name}")
            if not columns.accepts(field, kind):
                raise InputError(
                    f"{file}: column {schema.column(name)} is {kind}; "
                    f"field {name} of type {field.type} needs {columns.allowed(field)}"
                )
        if labelled:
            kind = _column_type(arrow, data.label, file, "data.label")
            if not columns.is_number(kind):
                raise InputError(f"{file}: label column {data.label} is {kind}; allowed is a number or bool, 0 or 1")
            if data.weight and not columns.is_number(kind := _column_type(arrow, data.weight, file, "data.weight")):
                raise InputError(f"{file}: weight column {data.weight} is {kind}; allowed is a number of at least 0")
            if data.user and not columns.is_id(kind := _column_type(arrow, data.user, file, "data.user")):
                raise InputError(f"{file}: user column {data.user} is {kind}; allowed is an integer or a string")


def _column_type(arrow: pa.Schema, column: str, file: str, who: str) -> pa.DataType:
    found = arrow.get_all_field_indices(column)
    if len(found) != 1:
        problem = "lacks" if not found else "has more than once"
        raise InputError(f"{file}: {problem} the column {column} ({who}); its columns are {', '.join(arrow.names)}")
    return arrow.field(found[0]).type


def column_names(schema: Schema, labelled: bool) -> list[str]:
    """The columns that `decode` reads."""
    names = [schema.column(name) for name in schema.names]
    if labelled:
        names += [name for name in (schema.data.label, schema.data.weight, schema.data.user) if name]
    return list(dict.fromkeys(names))


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
    values, lengths = columns.ragged(array, place)
    ends = np.cumsum(lengths)
    rows = columns.id_rows(values, field, table, place, lambda index: int(np.searchsorted(ends, index, side="right")))
    return Ragged.of_lengths(rows, lengths)


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
