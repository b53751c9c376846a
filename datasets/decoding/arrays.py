"""Convert Arrow arrays to the inputs of decoding: validity masks, list lengths and elements, and float64 values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.decoding.column_types import is_string

INT64, FLOAT64 = pa.int64(), pa.float64()


def in_one_piece(column: pa.ChunkedArray) -> pa.Array:
    """Return a chunked column as one array, without a copy if it has one chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def validity(column: pa.Array) -> np.ndarray:
    """Return [R] bool: True where a column has a value, False where it is null."""
    if column.null_count == 0:
        return np.ones(len(column), dtype=bool)
    return column.is_valid().to_numpy(zero_copy_only=False)


def as_float64(column: pa.Array) -> np.ndarray:
    """Return a column of numbers as float64 [R], with NaN for null; integers beyond 2^53 are rounded."""
    if column.type != FLOAT64:
        column = column.cast(FLOAT64, safe=False)
    return column.to_numpy(zero_copy_only=False)


def as_typed_ids(column: pa.Array) -> pa.Array:
    """Return a column of ids as integers, strings, or a dictionary of strings.

    A dictionary is decoded if its entries are not strings or contain a null. A column of type null becomes int64; all
    its values are null.
    """
    if pa.types.is_dictionary(column.type) and (not is_string(column.type.value_type) or column.dictionary.null_count):
        return column.dictionary_decode()
    return column.cast(INT64) if pa.types.is_null(column.type) else column


def list_lengths(column: pa.Array) -> np.ndarray:
    """Return the number of elements of each row of a list column, [R] int64; 0 where the list is null."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def flatten_lists(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the elements of a list column, including null elements, and the length of each row, [R] int64."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(INT64))
    values = column.flatten()
    if not pa.types.is_fixed_size_list(column.type):
        lengths = np.diff(column.offsets.to_numpy())
        if not column.null_count or lengths.sum() == len(values):  # otherwise a null list has hidden elements
            return as_typed_ids(values), lengths.astype(np.int64)
    return as_typed_ids(values), list_lengths(column)


def flatten_lists_without_nulls(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the non-null elements of a list column, and the number of them in each row, [R] int64."""
    values, lengths = flatten_lists(column)
    if values.null_count:
        lengths = count_in_rows(validity(values), lengths)
        values = values.drop_null()
    return values, lengths


def count_in_rows(marks: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the number of marked elements of each row, [R] int64.

    marks: [V] bool, marks of the elements of all rows, in order.
    lengths: [R], number of elements of each row.
    """
    before = np.concatenate([[0], np.cumsum(marks)])
    ends = np.cumsum(lengths)
    return before[ends] - before[ends - lengths]
