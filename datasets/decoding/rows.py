"""Decode the samples of files and requests into columns of a few fixed types. Batches are made from these columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets.decoding.arrays import in_one_piece
from asymdiffrec.datasets.decoding.ids import decode_id_lists, decode_ids, decode_users
from asymdiffrec.datasets.decoding.numbers import decode_labels, decode_numbers, decode_sample_weights
from asymdiffrec.datasets.schema import IdListConfig, Schema


@dataclass(frozen=True)
class Rows:
    """R samples in an Arrow record batch, with the columns in this order:

    - the sparse fields of the schema: ids in the id range of the table, int32 or int64. An id field is -1 where it is
      missing. An id_list field is a large list, which is empty where the field is missing;
    - for each id_list field with weights, in the same order: large lists of float32, with one weight per id;
    - the numeric fields: float32, standardised, NaN where missing;
    - label and weight, float32, and user, int64.
    """

    columns: pa.RecordBatch

    def __len__(self) -> int:
        return self.columns.num_rows

    @cached_property
    def nbytes(self) -> int:
        """The size of the rows in memory, in bytes."""
        return int(self.columns.nbytes)

    def slice(self, start: int, stop: int) -> Rows:
        """Return rows [start, stop), without a copy."""
        return Rows(self.columns.slice(start, stop - start))

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """Return the rows of all parts, in order; a single part is not copied."""
        return parts[0] if len(parts) == 1 else Rows(pa.concat_batches([part.columns for part in parts]))

    @cached_property
    def buffers(self) -> np.ndarray:
        """The memory addresses of each column, [columns, 3] int64: values, offsets, value size.

        - values: the address of the value of row 0; for a list column, the address that the offsets count from;
        - offsets: for a list column, the address of the offset of row 0; otherwise 0;
        - value size: the size in bytes of one value or one list element.
        """
        return np.array([_buffers(column) for column in self.columns.columns], dtype=np.int64)


def _buffers(column: pa.Array) -> tuple[int, int, int]:
    buffers, column_type = column.buffers(), column.type
    if pa.types.is_large_list(column_type):
        size = column_type.value_type.bit_width // 8
        values = buffers[3].address + column.values.offset * size if buffers[3] else 0
        return values, buffers[1].address + column.offset * 8, size
    size = column_type.bit_width // 8
    return buffers[1].address + column.offset * size, 0, size


def decode(table: pa.Table, schema: Schema, location: str, labelled: bool) -> Rows:
    """Decode the samples of an Arrow table.

    If `labelled` is false, the columns of label, weight and user are not read, and get the values 0, 1 and 0. Raises
    InputError with `location`, column and row for a value that its field does not allow.
    """
    arrays = dict(zip(table.column_names, map(in_one_piece, table.columns), strict=True))
    num_rows, data = table.num_rows, schema.data
    ids: list[pa.Array] = []
    weights: list[pa.Array] = []
    for name, field in schema.sparse.items():
        column = schema.column(name)
        vocabulary, column_location = schema.vocabulary(name), f"{location}, column {column}"
        if isinstance(field, IdListConfig):
            id_weights = arrays[field.weights] if field.weights else None
            lists, shares = decode_id_lists(
                arrays[column], id_weights, field, schema.table_of(name), vocabulary, column_location
            )
            ids.append(lists)
            weights += [shares] if shares is not None else []
        else:
            ids.append(pa.array(decode_ids(arrays[column], schema.table_of(name), vocabulary, column_location)))
    numbers = []
    for name, numeric_field in schema.numeric.items():
        column, statistics = schema.column(name), schema.numeric_statistics(name)
        numbers.append(decode_numbers(arrays[column], numeric_field, statistics, f"{location}, column {column}"))

    def decode_or_default(
        column: str | None, decode_column: Callable[[pa.Array, str], np.ndarray], default: np.ndarray
    ) -> np.ndarray:
        if not labelled or not column:
            return default
        return decode_column(arrays[column], f"{location}, column {column}")

    label = decode_or_default(data.label, decode_labels, np.zeros(num_rows, np.float32))
    weight = decode_or_default(data.weight, decode_sample_weights, np.ones(num_rows, np.float32))
    user = decode_or_default(data.user, decode_users, np.zeros(num_rows, np.int64))
    columns = ids + weights + [pa.array(values) for values in (*numbers, label, weight, user)]
    return Rows(pa.record_batch(columns, names=[str(index) for index in range(len(columns))]))


def no_rows(schema: Schema) -> Rows:
    """Return `Rows` without samples, with the columns of a schema."""
    empty = pa.table({name: pa.nulls(0) for name in schema.columns(labelled=False)})
    return decode(empty, schema, "", labelled=False)
