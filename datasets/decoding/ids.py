"""Decode columns of ids, id lists and users to integers: table rows, or 64-bit ids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.arrays import (
    INT64,
    as_float64,
    as_typed_ids,
    count_in_rows,
    flatten_lists,
    validity,
)
from asymdiffrec.datasets.decoding.id_hash import copy_ids, hash_ids, splitmix64, take_entries
from asymdiffrec.datasets.decoding.string_hash import string_ids
from asymdiffrec.datasets.decoding.value_rules import first_wrong_weight, ids_outside_table, parse_int64
from asymdiffrec.datasets.schema import IdListConfig, Table
from asymdiffrec.datasets.statistics.vocabulary import Vocabulary

RowOfValue = Callable[[int], int]
"""Function that returns the row of a value, given the index of the value; a row of a list column has several values."""


def decode_ids(
    column: pa.Array,
    table: Table,
    vocabulary: Vocabulary | None,
    location: str,
    row_of: RowOfValue = lambda index: index,
) -> np.ndarray:
    """Return the ids of a column of integers or strings, [V] int32 or int64, in [0, table.id_range); -1 for null.

    If `vocabulary` is given, all ids outside it are replaced by one common id. Raises InputError with `location` and
    row in two cases: a string is not an integer although the table has integer ids, or an id is outside a table with
    `hash: false`.
    """
    column = as_typed_ids(column)
    has_entries = pa.types.is_dictionary(column.type) and column.indices.type == pa.int32()
    if has_entries and table.values == "string" and table.hash:
        return take_entries(decode_ids(column.dictionary, table, vocabulary, location), column.indices)
    if column.type == INT64 and table.values == "int" and vocabulary is None:
        ids = column
    else:
        values = as_int64_ids(column, table.values, location, row_of)
        ids = _with_nulls_of(column, vocabulary.replace_rare(values) if vocabulary else values)
    if table.hash:
        return hash_ids(ids, table.hash_seed, table.id_range)
    copied, suspect = copy_ids(ids, table.num_embeddings)
    if suspect and (outside := ids_outside_table(ids, table.num_embeddings)).any():
        index = int(np.argmax(outside))
        raise InputError(
            f"{location}, row {row_of(index)}: id {column[index].as_py()} with hash: false; "
            f"allowed is 0 to {table.num_embeddings - 1} (num_embeddings: {table.num_embeddings})"
        )
    return copied


def _with_nulls_of(column: pa.Array, ids: np.ndarray) -> pa.Array:
    """Return ids [V] int64 as an Arrow array that is null where `column` [V] is null."""
    if not column.null_count:
        return pa.array(ids)
    if column.offset or pa.types.is_dictionary(column.type):
        return pa.array(ids, mask=~validity(column))
    return pa.Array.from_buffers(INT64, len(ids), [column.buffers()[0], pa.py_buffer(ids)], column.null_count)


def as_int64_ids(column: pa.Array, values: str, location: str, row_of: RowOfValue | None = None) -> np.ndarray:
    """Return the 64-bit ids of a column of integers or strings, [V] int64; undefined for null.

    `values` is the type of the field's ids. If it is "int", strings are parsed, see `parse_int64`. If it is "string",
    integers are written as text, and texts are hashed to 64 bits. So an id has the same 64-bit id in columns of both
    types. Raises InputError if `values` is "int" and a string is not an integer.
    """
    column = as_typed_ids(column)
    is_integer = pa.types.is_integer(column.type)
    if values == "string":
        return string_ids(column.cast(pa.string()) if is_integer else column)
    if not is_integer:
        strings = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        column = _parse_strings(strings, location, row_of)
    if column.null_count:  # without nulls, this call would take longer than the rest of a small request
        column = column.fill_null(0)
    return column.cast(INT64, safe=False).to_numpy()


def _parse_strings(strings: pa.Array, location: str, row_of: RowOfValue | None) -> pa.Array:
    try:
        parsed = strings.cast(INT64)
        is_exact = pc.all(pc.equal(parsed.cast(strings.type), strings), min_count=0).as_py()
    except pa.ArrowInvalid:
        is_exact = False
    if is_exact:
        return parsed
    index = next(i for i, text in enumerate(strings.to_pylist()) if text is not None and parse_int64(text) is None)
    where = f"{location}, row {row_of(index)}" if row_of else location
    raise InputError(
        f"{where}: {strings[index].as_py()!r} is no 64-bit integer in its usual form; set values: string for this field"
    )


def decode_id_lists(
    column: pa.Array,
    weights: pa.Array | None,
    field: IdListConfig,
    table: Table,
    vocabulary: Vocabulary | None,
    location: str,
) -> tuple[pa.Array, pa.Array | None]:
    """Return the lists of a column, with ids as in `decode_ids`, and the lists of their weights in fp32.

    Null ids and their weights are left out. For a field with mean pooling, the weights of a list are divided by their
    sum, so that the weighted sum of the look-up is the weighted mean. If `weights` is None, the second result is None.
    Raises InputError in the same cases as `decode_ids`, and for wrong weights, see `first_wrong_weight`.
    """
    values, lengths = flatten_lists(column)
    shares = None if weights is None else _flatten_weights(weights, lengths, location)
    if values.null_count:
        is_valid = validity(values)
        lengths, values = count_in_rows(is_valid, lengths), values.drop_null()
        shares = None if shares is None else shares[is_valid]
    ends = np.cumsum(lengths)
    offsets = pa.array(np.concatenate([[0], ends]))

    def row_of(index: int) -> int:
        return int(np.searchsorted(ends, index, side="right"))

    ids = pa.array(decode_ids(values, table, vocabulary, location, row_of))
    lists = pa.LargeListArray.from_arrays(offsets, ids)
    if shares is None:
        return lists, None
    if field.pooling == "mean":
        rows = np.repeat(np.arange(len(lengths)), lengths)
        shares = shares / np.bincount(rows, shares, len(lengths)).clip(min=np.finfo(np.float32).tiny)[rows]
    return lists, pa.LargeListArray.from_arrays(offsets, pa.array(shares.astype(np.float32)))


def _flatten_weights(column: pa.Array, id_counts: np.ndarray, location: str) -> np.ndarray:
    """Return the elements of a list column of weights, float64. `id_counts` [R] are the lengths of the id lists."""
    values, weight_counts = flatten_lists(column)
    weights = as_float64(values)
    if problem := first_wrong_weight(id_counts, weight_counts, weights):
        row, text = problem
        raise InputError(f"{location}, row {row}: {text}")
    return weights


def decode_users(column: pa.Array, location: str) -> np.ndarray:
    """Return 64-bit user ids, [R] int64.

    A row without a user gets a separate user id, derived from `location` and the row. GAUC skips such users, because a
    user with a single row has only one label.
    """
    column = as_typed_ids(column)
    users = as_int64_ids(column, "int" if pa.types.is_integer(column.type) else "string", location)
    if not column.null_count:
        return users
    rows = np.arange(len(column), dtype=np.uint64)
    singles = splitmix64(rows ^ string_ids(pa.array([location])).view(np.uint64))
    return np.where(validity(column), users, singles.view(np.int64))
