"""Columns of files to columns of samples, by the kind of a field; the first value that is wrong is named."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.hashing import hash_rows, own_rows, splitmix64, string_ids, taken
from asymdiffrec.datasets.decoding.native import compiled, view
from asymdiffrec.datasets.schema import AnyField, IdConfig, IdListConfig, NumericFieldConfig
from asymdiffrec.datasets.statistics.statistics import NumericStatistics
from asymdiffrec.datasets.statistics.vocabulary import Vocabulary

LARGEST = float(np.finfo(np.float32).max)
INT64, FLOAT64 = pa.int64(), pa.float64()


def accepts(field: AnyField, kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type can hold the field; one without a single value may be of type null."""
    if pa.types.is_null(kind):
        return True
    if isinstance(field, NumericFieldConfig):
        return is_number(kind)
    if isinstance(field, IdListConfig):
        return is_list(kind) and (pa.types.is_null(kind.value_type) or is_id(kind.value_type))
    return is_id(kind)


def allowed(field: AnyField) -> str:
    """The column types that `accepts` takes, for messages."""
    if isinstance(field, NumericFieldConfig):
        return "a number"
    return "a list of integers or strings" if isinstance(field, IdListConfig) else "an integer or a string"


def is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind)


def is_id(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_id(kind.value_type)
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_weights(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type can hold the weights of a list of ids."""
    return pa.types.is_null(kind) or (
        is_list(kind) and (pa.types.is_null(kind.value_type) or is_number(kind.value_type))
    )


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
    seed: int,
    vocabulary: Vocabulary | None,
    place: str,
    row_of: Callable[[int], int] = lambda index: index,
    id_range: int | None = None,
) -> np.ndarray:
    """Rows of the field's table, [V] int32 or int64, for a column of integers or strings; -1 where it is null.

    Hashed to `id_range` values in place of the table's rows where it is given. Ids outside the field's vocabulary are
    one id. `seed` is the table's. `row_of` gives the row of a value for messages; it is the value's own index where a
    row has one value.
    """
    column = _typed(column)
    if _is_in_dictionary(column) and field.values == "string" and field.hash:
        entries = id_rows(column.dictionary, field, seed, vocabulary, place, id_range=id_range)
        return taken(entries, column.indices)
    if column.type == INT64 and field.values == "int" and vocabulary is None:
        ids = column
    else:
        numbers = as_int64(column, field.values, place, row_of)
        ids = _as_missing(vocabulary.fold(numbers) if vocabulary else numbers, column)
    if field.hash:
        return hash_rows(ids, seed, id_range or field.num_embeddings)
    found, suspect = own_rows(ids, field.num_embeddings)
    if suspect and (wrong := strangers(ids, field.num_embeddings)).any():
        index = int(np.argmax(wrong))
        raise InputError(
            f"{place}, row {row_of(index)}: id {column[index].as_py()} with hash: false; "
            f"allowed is 0 to {field.num_embeddings - 1} (num_embeddings: {field.num_embeddings})"
        )
    return found


def strangers(ids: pa.Array, rows: int) -> np.ndarray:
    """Which ids [V] int64 are none of a table's rows, [V] bool; a null is not."""
    if not len(ids):
        return np.zeros(0, dtype=bool)
    values = np.frombuffer(ids.buffers()[1], np.uint64)[ids.offset : ids.offset + len(ids)]
    found: np.ndarray = values >= rows  # one below 0 is beyond all of them there
    return found & validity(ids) if ids.null_count and found.any() else found


def _is_in_dictionary(column: pa.Array) -> bool:
    return pa.types.is_dictionary(column.type) and column.indices.type == pa.int32()


def _as_missing(ids: np.ndarray, column: pa.Array) -> pa.Array:
    """Ids that are missing where a column is."""
    if not column.null_count:
        return pa.array(ids)
    if column.offset or pa.types.is_dictionary(column.type):
        return pa.array(ids, mask=~validity(column))
    return pa.Array.from_buffers(pa.int64(), len(ids), [column.buffers()[0], pa.py_buffer(ids)], column.null_count)


def _filled(column: pa.Array, value: int) -> pa.Array:
    """Without the call, which alone costs more than the rest of a small request, where there is no null."""
    return column.fill_null(value) if column.null_count else column


def as_int64(column: pa.Array, values: str, place: str, row_of: Callable[[int], int] | None = None) -> np.ndarray:
    """64-bit ids of a column of integers or strings, [V] int64; 0 or another id where it is null.

    `values` says what the ids are. Integers in a string column are parsed where writing them out again gives the same
    string; strings are hashed to 64 bits. The same id has the same number in either kind of column.
    """
    column = _typed(column)
    integers = pa.types.is_integer(column.type)
    if values == "string":
        return string_ids(column.cast(pa.string()) if integers else column)
    if not integers:
        column = _parsed(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column, place, row_of)
    return _filled(column, 0).cast(pa.int64(), safe=False).to_numpy()


def _typed(column: pa.Array) -> pa.Array:
    """A column that has no value and so no type as integers; dictionaries of integers, or with a null, decoded."""
    if pa.types.is_dictionary(column.type) and (not _is_text(column.type.value_type) or column.dictionary.null_count):
        return column.dictionary_decode()
    return column.cast(pa.int64()) if pa.types.is_null(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


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
    values, lengths = _flattened(column)
    if values.null_count:
        lengths = _counts(validity(values), lengths)
        values = values.drop_null()
    return values, lengths


def _flattened(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column, null elements too, and each row's number of them, [R] int64."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(INT64))
    values = column.flatten()
    if not pa.types.is_fixed_size_list(column.type):
        lengths = np.diff(column.offsets.to_numpy())
        if not column.null_count or lengths.sum() == len(values):  # else there are values behind a null
            return _typed(values), lengths.astype(np.int64)
    return _typed(values), list_lengths(column)


def list_lengths(column: pa.Array) -> np.ndarray:
    """How many elements each row of a list column has, 0 where it is null, [R] int64."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _counts(marked: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many of each row's elements are marked, [R] int64."""
    before = np.concatenate([[0], np.cumsum(marked)])
    ends = np.cumsum(lengths)
    return before[ends] - before[ends - lengths]


def id_lists(
    column: pa.Array,
    weights: pa.Array | None,
    field: IdListConfig,
    seed: int,
    vocabulary: Vocabulary | None,
    place: str,
    id_range: int | None = None,
) -> tuple[pa.Array, pa.Array | None]:
    """The lists of a column as lists of rows of the table, and their weights, where there are, as such lists.

    A weight is finite and not negative. Where the field is pooled by mean, a row's weights are divided by their sum, so
    that the weighted sum that the look-up makes is the weighted mean.
    """
    values, lengths = _flattened(column)
    shares = None if weights is None else _weights(weights, lengths, place)
    if values.null_count:
        kept = validity(values)
        lengths, values = _counts(kept, lengths), values.drop_null()
        shares = None if shares is None else shares[kept]
    ends = np.cumsum(lengths)
    offsets = pa.array(np.concatenate([[0], ends]))

    def row_of(index: int) -> int:
        return int(np.searchsorted(ends, index, side="right"))

    found = pa.array(id_rows(values, field, seed, vocabulary, place, row_of, id_range))
    lists = pa.LargeListArray.from_arrays(offsets, found)
    if shares is None:
        return lists, None
    if field.pooling == "mean":
        rows = np.repeat(np.arange(len(lengths)), lengths)
        shares = shares / np.bincount(rows, shares, len(lengths)).clip(min=np.finfo(np.float32).tiny)[rows]
    return lists, pa.LargeListArray.from_arrays(offsets, pa.array(shares.astype(np.float32)))


def _weights(column: pa.Array, lengths: np.ndarray, place: str) -> np.ndarray:
    """The elements of a list column of weights, float64; its rows must be as long as those of the ids."""
    values, found = _flattened(column)
    if (found != lengths).any():
        row = int(np.argmax(found != lengths))
        raise InputError(
            f"{place}, row {row}: {lengths[row]} ids but {found[row]} weights; there must be one for each id"
        )
    weights = floats(values)
    right = (weights >= 0) & (weights <= LARGEST)
    if not right.all():
        index = int(np.argmin(right))
        row = int(np.searchsorted(np.cumsum(lengths), index, side="right"))
        raise InputError(
            f"{place}, row {row}: the weight of an id is {values[index]}; allowed is a finite number of at least 0"
        )
    return weights


def floats(column: pa.Array) -> np.ndarray:
    """A numeric column as float64 with NaN where it is null, [R]; integers beyond 2^53 are rounded."""
    if column.type != FLOAT64:
        column = column.cast(FLOAT64, safe=False)
    return column.to_numpy(zero_copy_only=False)


def transformed(values: np.ndarray, transform: str) -> np.ndarray:
    """Numbers [R] float64 as `NumberConfig.transform` says, before they are standardised; NaN stays NaN."""
    if transform == "log1p":
        return np.copysign(np.log1p(np.abs(values)), values)
    if transform == "log_squared":
        return np.where(values > 2, np.square(np.log(np.maximum(values, 2))), values)
    return values


def standardised(column: pa.Array, field: NumericFieldConfig, moments: NumericStatistics, place: str) -> np.ndarray:
    """A number column, transformed and standardised, [R] float32, NaN where it is missing, finite elsewhere."""
    values = transformed(floats(column), field.transform)
    found = np.empty(len(values), np.float32)
    if _standardise(values.ctypes.data, moments.mean, moments.std, found):
        with np.errstate(over="ignore"):
            right = ~(np.abs((values - moments.mean) / moments.std) > LARGEST)
        _require(right, column, place, "number", "null, NaN or a finite 32-bit float once standardised")
    return found


@compiled
def _standardise(address: int, mean: float, std: float, found: np.ndarray) -> bool:
    """Of float64 from an address on, be they read-only or not; whether any is too large for `found`."""
    values, wrong = view(address, np.float64), False
    for place in range(np.uint64(len(found))):
        value = (values[place] - mean) / std
        wrong |= abs(value) > LARGEST
        found[place] = value
    return wrong


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
    """64-bit user ids, [R] int64. A row without a user is a user of its own, whom GAUC leaves out: it has one class."""
    column = _typed(column)
    known = as_int64(column, "int" if pa.types.is_integer(column.type) else "string", place)
    if not column.null_count:
        return known
    own = splitmix64(np.arange(len(column), dtype=np.uint64) ^ string_ids(pa.array([place])).view(np.uint64))
    return np.where(validity(column), known, own.view(np.int64))
