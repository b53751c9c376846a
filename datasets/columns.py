"""Arrow columns to numpy, by the kind of a field. Each function checks the values and names the first that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.hashing import hash_rows, splitmix64, string_ids
from asymdiffrec.datasets.schema import AnyField, IdConfig, IdListConfig, Moments, NumberConfig, table_seed

LARGEST = float(np.finfo(np.float32).max)


def accepts(field: AnyField, kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type can hold the field; one without a single value may be of type null."""
    if pa.types.is_null(kind):
        return True
    if isinstance(field, NumberConfig):
        return is_number(kind)
    if isinstance(field, IdListConfig):
        return is_list(kind) and (pa.types.is_null(kind.value_type) or is_id(kind.value_type))
    return is_id(kind)


def allowed(field: AnyField) -> str:
    """The column types that `accepts` takes, for messages."""
    if isinstance(field, NumberConfig):
        return "a number"
    return "a list of integers or strings" if isinstance(field, IdListConfig) else "an integer or a string"


def is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def is_id(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_id(kind.value_type)
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def validity(column: pa.Array) -> np.ndarray:
    """True where a column has a value, [R] bool."""
    if column.null_count == 0:
        return np.ones(len(column), dtype=bool)
    return column.is_valid().to_numpy(zero_copy_only=False)


def id_rows(
    column: pa.Array,
    field: IdConfig | IdListConfig,
    table: str,
    place: str,
    row_of: Callable[[int], int] = lambda index: index,
) -> np.ndarray:
    """Rows of the field's table, [V] int64; -1 where the column is null.

    `row_of` gives the row of a value for messages; it is the value's own index where a row has one value.
    """
    column = _plain(column)
    ids = as_int64(column, field.values, place, row_of)
    if field.hash:
        rows = hash_rows(ids, table_seed(table), field.rows)
    else:
        rows = ids
        wrong = (ids < 0) | (ids >= field.rows)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise InputError(
                f"{place}, row {row_of(index)}: id {column[index].as_py()} with hash: false; "
                f"allowed is 0 to {field.rows - 1} (rows: {field.rows})"
            )
    return np.where(validity(column), rows, -1) if column.null_count else rows


def as_int64(column: pa.Array, values: str, place: str, row_of: Callable[[int], int] | None = None) -> np.ndarray:
    """64-bit ids of a column of integers or strings, [V] int64; 0 or another id where it is null.

    `values` says what the ids are. Integers in a string column are parsed where writing them out again gives the same
    string; strings are hashed to 64 bits. The same id has the same number in either kind of column.
    """
    column = _plain(column)
    integers = pa.types.is_integer(column.type)
    if values == "string":
        return string_ids((column.cast(pa.string()) if integers else column).fill_null(""))
    if not integers:
        column = _parsed(column, place, row_of)
    return column.fill_null(0).cast(pa.int64(), safe=False).to_numpy()


def _plain(column: pa.Array) -> pa.Array:
    """Dictionary-encoded values decoded, and a column that has no value and so no type as integers."""
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    return column.cast(pa.int64()) if pa.types.is_null(column.type) else column


def _parsed(strings: pa.Array, place: str, row_of: Callable[[int], int] | None) -> pa.Array:
    try:
        parsed = strings.cast(pa.int64())
        exact = pc.all(pc.equal(parsed.cast(strings.type), strings), min_count=0).as_py()
    except pa.ArrowInvalid:
        exact = False
    if exact:
        return parsed
    index = next(i for i, text in enumerate(strings.to_pylist()) if text is not None and not _is_int64(text))
    where = f"{place}, row {row_of(index)}" if row_of else place
    raise InputError(
        f"{where}: {strings[index].as_py()!r} is no 64-bit integer in its usual form; declare the field values: string"
    )


def _is_int64(text: str) -> bool:
    return re.fullmatch("0|-?[1-9][0-9]*", text) is not None and -(2**63) <= int(text) < 2**63


def ragged(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column without its null elements, and each row's number of them, [R] int64."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.int64()))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = _plain(column.flatten())
    if values.null_count:
        kept = np.concatenate([[0], np.cumsum(validity(values))])
        ends = np.cumsum(lengths)
        lengths = kept[ends] - kept[ends - lengths]
        values = values.drop_null()
    return values, lengths


def floats(column: pa.Array) -> np.ndarray:
    """A numeric column as float64 with NaN where it is null, [R]; integers beyond 2^53 are rounded."""
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def standardised(column: pa.Array, moments: Moments, place: str) -> np.ndarray:
    """A number column, standardised, [R] float32, NaN where it is missing, finite elsewhere."""
    with np.errstate(over="ignore"):
        values = (floats(column) - moments.mean) / moments.std
    _require(
        ~(np.abs(values) > LARGEST), column, place, "number", "null, NaN or a finite 32-bit float once standardised"
    )
    return values.astype(np.float32)


def labels(column: pa.Array, place: str) -> np.ndarray:
    """The label column, [R] float32, each 0 or 1."""
    values = floats(column)
    _require((values == 0) | (values == 1), column, place, "label", "0 or 1")
    return values.astype(np.float32)


def weights(column: pa.Array, place: str) -> np.ndarray:
    """The weight column, [R] float32, each finite and at least 0."""
    values = floats(column)
    _require((values >= 0) & (values <= LARGEST), column, place, "weight", "a finite number of at least 0")
    return values.astype(np.float32)


def _require(right: np.ndarray, column: pa.Array, place: str, what: str, range_: str) -> None:
    if not right.all():
        row = int(np.argmin(right))
        raise InputError(f"{place}, row {row}: {what} {column[row].as_py()}; allowed is {range_}")


def users(column: pa.Array, place: str) -> np.ndarray:
    """64-bit user ids, [R] int64. A row without a user is a user of its own, whom UAUC leaves out: it has one class."""
    column = _plain(column)
    ids = as_int64(column, "int" if pa.types.is_integer(column.type) else "string", place)
    own = splitmix64(np.arange(len(column), dtype=np.uint64) ^ string_ids(pa.array([place])).view(np.uint64))
    return np.where(validity(column), ids, own.view(np.int64))
