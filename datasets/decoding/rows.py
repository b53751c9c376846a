"""Decoded samples in columns of a few fixed types: what lies between the files and the batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets.decoding import columns
from asymdiffrec.datasets.schema import IdListConfig, Schema


@dataclass(frozen=True)
class Rows:
    """R samples, as an Arrow record batch whose columns are, in this order:

    - the id and id_list fields of the schema, hashed, int32 or int64: -1 where an id is missing;
      lists, empty where they are missing;
    - for each list with weights, in the same order, lists of as many float32;
    - the number fields: float32, standardised, NaN where missing;
    - label and weight, float32, and user, int64.
    """

    columns: pa.RecordBatch

    def __len__(self) -> int:
        return self.columns.num_rows

    @cached_property
    def nbytes(self) -> int:
        """What the rows take in memory."""
        return int(self.columns.nbytes)

    def slice(self, start: int, stop: int) -> Rows:
        """Rows [start, stop), which share the memory of these."""
        return Rows(self.columns.slice(start, stop - start))

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        return parts[0] if len(parts) == 1 else Rows(pa.concat_batches([part.columns for part in parts]))

    @cached_property
    def buffers(self) -> np.ndarray:
        """Where row 0 of each column lies in memory, [columns, 3] int64: the address of the value, for a list that of
        the first of all values; for a list the address of its offset, else 0; and the bytes of a value."""
        return np.array([_buffers(column) for column in self.columns.columns], dtype=np.int64)


def _buffers(column: pa.Array) -> tuple[int, int, int]:
    buffers, kind = column.buffers(), column.type
    if pa.types.is_large_list(kind):
        width = kind.value_type.bit_width // 8
        values = buffers[3].address + column.values.offset * width if buffers[3] else 0
        return values, buffers[1].address + column.offset * 8, width
    width = kind.bit_width // 8
    return buffers[1].address + column.offset * width, 0, width


def decode(table: pa.Table, schema: Schema, place: str, labelled: bool) -> Rows:
    """The samples of an Arrow table; without `labelled`, label, weight and user are not read: 0, 1 and 0.

    Raises InputError with `place`, the column and the row where a value is out of what its field allows.
    """
    arrays = dict(zip(table.column_names, map(whole, table.columns), strict=True))
    count, data = table.num_rows, schema.data
    ids: list[pa.Array] = []
    weights: list[pa.Array] = []
    for name, field in schema.sparse.items():
        array, where = arrays[schema.column(name)], f"{place}, column {schema.column(name)}"
        table_of, vocabulary = schema.table_of(name), schema.vocabulary(name)
        seed, id_range = table_of.hash_seed, table_of.id_range
        if isinstance(field, IdListConfig):
            weighing = arrays[field.weights] if field.weights else None
            lists, shares = columns.id_lists(array, weighing, field, seed, vocabulary, where, id_range)
            ids.append(lists)
            weights += [shares] if shares is not None else []
        else:
            ids.append(pa.array(columns.id_rows(array, field, seed, vocabulary, where, id_range=id_range)))
    numbers = [
        columns.standardised(
            arrays[schema.column(name)],
            field,
            schema.numeric_statistics(name),
            f"{place}, column {schema.column(name)}",
        )
        for name, field in schema.numeric.items()
    ]

    def beside(name: str | None, convert: Callable[[pa.Array, str], np.ndarray], default: np.ndarray) -> np.ndarray:
        return convert(arrays[name], f"{place}, column {name}") if labelled and name else default

    label = beside(data.label, columns.labels, np.zeros(count, np.float32))
    weight = beside(data.weight, columns.weights, np.ones(count, np.float32))
    user = beside(data.user, columns.users, np.zeros(count, np.int64))
    samples = ids + weights + [pa.array(values) for values in (*numbers, label, weight, user)]
    return Rows(pa.record_batch(samples, names=[str(place) for place in range(len(samples))]))


def whole(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece; a column that is in one is not copied."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def no_rows(schema: Schema) -> Rows:
    """No samples."""
    nothing = pa.table({name: pa.nulls(0) for name in schema.columns(labelled=False)})
    return decode(nothing, schema, "", labelled=False)
