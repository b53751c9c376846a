"""What samples look like in a request: the table that `decode` takes of them, or what is wrong with which field."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.decoding.arrays import as_float64, list_lengths
from asymdiffrec.datasets.decoding.value_rules import MAX_FLOAT, first_wrong_weight, ids_outside_table, parse_int64
from asymdiffrec.datasets.schema import IdListConfig, Schema, SparseFieldConfig

MOST_IDS = 10_000
"""Of one list"""
MOST_BYTES = 64 << 20
"""Of a column that a dictionary stands for"""


class SampleError(ValueError):
    """What the sender of a request has to change."""


@dataclass(frozen=True)
class Column:
    """A column of a sample."""

    kind: type
    """int or str, of ids; float, of numbers"""
    is_list: bool
    rows: int | None
    """Where ids are rows of a table: which of them there are"""

    @cached_property
    def arrow(self) -> pa.DataType:
        value = {int: pa.int64(), str: pa.string(), float: pa.float64()}[self.kind]
        return pa.list_(value) if self.is_list else value

    @property
    def described(self) -> str:
        one = {int: "integer", str: "string", float: "number"}[self.kind]
        return f"a list of {one}s" if self.is_list else f"{'an' if self.kind is int else 'a'} {one}"

    @property
    def json_schema(self) -> dict[str, Any]:
        """Of its values, as OpenAPI has it."""
        one: dict[str, Any] = {"type": {int: "integer", str: "string", float: "number"}[self.kind]}
        if self.is_list:
            one = {"type": "array", "items": one, "maxItems": MOST_IDS}
        return {**one, "type": [one["type"], "null"]}

    def array(self, values: Sequence[Any]) -> pa.Array | None:
        """The values [B], None where one is missing; None where one of them is no value of the column.

        As in training, an integer may be a string and the other way round where that loses nothing.
        """
        if not self._fit(values, {int, float} if self.kind is float else {self.kind}):
            if self.kind is float or not self._fit(values, {int, str}):
                return None
            values = self._converted(values)
        try:
            return pa.array(values, self.arrow)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
            return self._of_large(values)

    def cast(self, array: pa.Array) -> pa.Array:
        """An Arrow array as one of the column; raises what pyarrow raises, or ValueError, where it is none."""
        value = array.type
        if self.is_list and not pa.types.is_null(value):
            if not (pa.types.is_list(value) or pa.types.is_large_list(value) or pa.types.is_fixed_size_list(value)):
                raise ValueError("no list")
            longest = pc.max(pc.list_value_length(array)).as_py()
            if longest is not None and longest > MOST_IDS:
                raise ValueError("too long a list")
            value = value.value_type
        if pa.types.is_dictionary(value):
            if self.is_list or value.value_type not in (pa.string(), pa.large_string(), pa.int64()):
                raise ValueError("dictionaries are of strings or integers, and not within lists")
            sizes = pc.binary_length(array.dictionary) if value.value_type != pa.int64() else None
            if sizes is not None and len(array) * (pc.max(sizes).as_py() or 0) > MOST_BYTES:
                raise ValueError("too large a column, once it is decoded")
        # Integers become numbers, and ids from 2^63 on ids, as in training; nothing else is rounded.
        made = array.cast(self.arrow, safe=not pa.types.is_integer(value))
        made.validate(full=True)
        return made

    def _fit(self, values: Sequence[Any], kinds: set[type]) -> bool:
        """By their types, all at once: a bool is no number, and a number is no id."""
        if self.is_list:
            lists = [value for value in values if value is not None]
            if not {list} >= set(map(type, lists)) or max(map(len, lists), default=0) > MOST_IDS:
                return False
            values = list(chain.from_iterable(lists))
        found, null = set(map(type, values)), type(None)
        if not (kinds if self.is_list else kinds | {null}) >= found:
            return False
        numbers = [value for value in values if value is not None] if null in found else values
        return self.kind is not float or max(map(abs, numbers), default=0) <= MAX_FLOAT

    def _converted(self, values: Sequence[Any]) -> list[Any]:
        """Ids in the kind of the column; what is no integer as it was."""

        def one(value: Any) -> Any:
            if type(value) is self.kind:
                return value
            if self.kind is str:
                return str(value)
            parsed = parse_int64(value)
            return value if parsed is None else parsed

        return self._each(values, one)

    def _of_large(self, values: Sequence[Any]) -> pa.Array | None:
        """Integers that floats only round to, and ids from 2^63 on, by the same bits as in training."""
        try:
            if self.kind is float:
                return pa.array(self._each(values, float), self.arrow)
            if self.kind is int:
                unsigned = pa.list_(pa.uint64()) if self.is_list else pa.uint64()
                return pa.array(values, unsigned).cast(self.arrow, safe=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
        return None

    def _each(self, values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
        """The values, or their elements, converted; None stays."""
        if not self.is_list:
            return [None if value is None else convert(value) for value in values]
        return [None if value is None else list(map(convert, value)) for value in values]

    def strangers(self, array: pa.Array) -> np.ndarray | None:
        """Which of an array's ids, of a list's all one after the other, are no rows, where ids are rows and some are
        not."""
        if self.rows is None:
            return None
        found = ids_outside_table(array.flatten() if self.is_list else array, self.rows)
        return found if found.any() else None


def _parents(lists: pa.Array) -> np.ndarray:
    """The number of the list that each value of `flatten` is of: there may be values behind a null, which Arrow's own
    parent indices count."""
    return np.repeat(np.arange(len(lists)), list_lengths(lists))


def _without(array: pa.Array, gone: np.ndarray, is_list: bool) -> pa.Array:
    """The array without some of its values, or of its lists' values."""
    if not is_list:
        return pc.if_else(pa.array(gone), pa.scalar(None, array.type), array)
    kept = np.bincount(_parents(array)[~gone], minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, array.flatten().filter(pa.array(~gone)), mask=array.is_null())


class Query(NamedTuple):
    """Candidates, and what they share; each has its columns by name."""

    shared: Mapping[str, pa.Array]
    """Of one value"""
    own: Mapping[str, pa.Array]
    """Of a value for each candidate"""
    candidates: int
    """How many"""


class RequestSchema:
    """The columns of the samples of a schema. A field that is absent or null is missing; ids that are no row of a table
    with `hash: false` are, too."""

    def __init__(self, schema: Schema) -> None:
        data = schema.data
        self.columns: dict[str, Column] = {}
        self.weights = {
            schema.column(name): field.weights
            for name, field in schema.fields.items()
            if isinstance(field, IdListConfig) and field.weights
        }
        for name, field in schema.fields.items():
            is_list, rows = isinstance(field, IdListConfig), None
            kind: type = float
            if isinstance(field, SparseFieldConfig):
                kind = str if field.values == "string" else int
                rows = None if field.hash or kind is str else field.num_embeddings
            self._add(schema.column(name), Column(kind, is_list, rows))
        for weights in self.weights.values():
            self._add(weights, Column(float, True, None))
        beside = {name for name in (data.label, data.user, data.time, data.weight) if name}
        self._known = beside | self.columns.keys()

    def _add(self, name: str, column: Column) -> None:
        """Fields may share a column: then it has integers where they do not agree, which all of them take."""
        known = self.columns.setdefault(name, column)
        if known != column:
            rows = [one.rows for one in (known, column) if one.rows is not None]
            self.columns[name] = Column(int, column.is_list, min(rows, default=None))

    def table(self, samples: Sequence[Any] | Mapping[str, Any]) -> pa.Table:
        """All columns of some samples: an object of values by column for each, or one object with a list of values for
        each column. Raises BadRequestError with the place, the column, what was found and what is allowed."""
        values, count, place = self._values(samples, "samples")
        return self._table(self._arrays(values, place), count)

    def query(self, shared: Any, candidates: Sequence[Any] | Mapping[str, Any]) -> Query:
        """An object of values by column that all candidates share, and those of each, given as `table` takes samples.

        Raises BadRequestError as `table` does, and where a column is in both.
        """
        own, count, place = self._values(candidates, "candidates")
        return self._query(shared, self._arrays(own, place), count)

    def _query(self, shared: Any, own: Mapping[str, pa.Array], count: int) -> Query:
        values = self._gathered([shared], lambda number: "shared")
        common = self._arrays(values, lambda column, number: f"shared.{column}")
        if both := common.keys() & own.keys():
            raise SampleError(f"candidates: {min(both)} is in shared, too")
        return Query(common, own, count)

    def table_of(self, queries: Sequence[Query]) -> pa.Table:
        """A row for each query with what its candidates share, and then, query by query, one for each candidate with
        what it has for itself."""
        count = sum(query.candidates for query in queries)
        columns = {}
        for name, one in self.columns.items():
            shared = [_or_nulls(query.shared.get(name), 1, one) for query in queries]
            own = [query.own[name] for query in queries if name in query.own] or [_or_nulls(None, count, one)]
            columns[name] = pa.concat_arrays([*shared, *own])
        return pa.table(self._of_rows(columns))

    def _table(self, arrays: Mapping[str, pa.Array], count: int) -> pa.Table:
        known = self._of_rows(arrays)
        return pa.table({name: _or_nulls(known.get(name), count, one) for name, one in self.columns.items()})

    def _values(
        self, samples: Sequence[Any] | Mapping[str, Any], name: str
    ) -> tuple[dict[str, list[Any]], int, Callable[[str, int], str]]:
        """The values of some samples by column, the number of samples, and what messages call the place of a column's
        value."""
        if isinstance(samples, Mapping):
            values, count = self._listed(samples, name)
            return values, count, lambda column, number: f"{name}.{column}[{number}]"
        values = self._gathered(samples, lambda number: f"{name}[{number}]")
        return values, len(samples), lambda column, number: f"{name}[{number}].{column}"

    def _arrays(self, values: Mapping[str, list[Any]], place: Callable[[str, int], str]) -> dict[str, pa.Array]:
        """Of values by column."""
        arrays = {}
        for name, own in values.items():
            arrays[name] = self.columns[name].array(own)
            if arrays[name] is None:
                raise self._wrong(own, name, place)
        self._check_weights(arrays, place)
        return arrays

    def _check_weights(self, arrays: Mapping[str, pa.Array], place: Callable[[str, int], str]) -> None:
        """Raise SampleError for wrong weights; a null weight is allowed, because its id may be outside the table."""
        for name, weights in self.weights.items():
            if name not in arrays or weights not in arrays:
                continue
            values = as_float64(pc.fill_null(arrays[weights].flatten(), 0))
            if problem := first_wrong_weight(list_lengths(arrays[name]), list_lengths(arrays[weights]), values):
                number, text = problem
                raise SampleError(f"{place(weights, number)}: {text}")

    def _of_rows(self, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
        """Without the ids that are no rows, nor their weights; `decode` refuses lists that have not one for each id."""
        arrays = dict(columns)
        for name, array in columns.items():
            column = self.columns[name]
            gone = column.strangers(array)
            if gone is not None:
                arrays[name] = _without(array, gone, column.is_list)
                weights = self.weights.get(name)
                if weights in arrays and np.array_equal(list_lengths(array), list_lengths(arrays[weights])):
                    arrays[weights] = _without(arrays[weights], gone, True)
        return arrays

    def _gathered(self, samples: Sequence[Any], place: Callable[[int], str]) -> dict[str, list[Any]]:
        found: set[str] = set()
        for number, sample in enumerate(samples):
            if type(sample) is not dict:
                raise SampleError(f"{place(number)}: found {_shown(sample)}; an object of columns is expected")
            found |= sample.keys()
        if not found <= self._known:
            unknown = min(found - self._known)
            number = next(number for number, sample in enumerate(samples) if unknown in sample)
            raise self._no_such(place(number), unknown)
        return {name: [sample.get(name) for sample in samples] for name in self.columns if name in found}

    def _listed(self, columns: Mapping[str, Any], place: str) -> tuple[dict[str, list[Any]], int]:
        """And how many values each column has."""
        if not columns.keys() <= self._known:
            raise self._no_such(place, min(columns.keys() - self._known))
        for name, values in columns.items():
            if type(values) is not list:
                raise SampleError(f"{place}.{name}: found {_shown(values)}; a list of values is expected")
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            least, most = (choose(lengths, key=lambda name: lengths[name]) for choose in (min, max))
            raise SampleError(f"{place}: {lengths[least]} values of {least}, {lengths[most]} of {most}")
        values = {name: own for name, own in columns.items() if name in self.columns}
        return values, next(iter(lengths.values()), 0)

    def _no_such(self, place: str, name: str) -> SampleError:
        close = difflib.get_close_matches(name, self.columns, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(self.columns)}"
        return SampleError(f"{place}.{name}: no such column; {hint}")

    def _wrong(self, values: Sequence[Any], name: str, place: Callable[[str, int], str]) -> SampleError:
        """Of the first value that does not fit by itself."""
        column = self.columns[name]
        number = next(number for number, value in enumerate(values) if column.array([value]) is None)
        where = place(name, number)
        if type(values[number]) is list and len(values[number]) > MOST_IDS:
            return SampleError(f"{where}: {len(values[number]):,} ids; {MOST_IDS:,} are allowed")
        return SampleError(f"{where}: found {_shown(values[number])}; {column.described} is expected")

    def checked(self, table: pa.Table) -> pa.Table:
        """All columns of an Arrow table of samples. BadRequestError where one is of a type that it cannot be."""
        return self._table(self._cast(table), len(table))

    def checked_query(self, shared: Any, candidates: pa.Table) -> Query:
        """As `query`, of an Arrow table of candidates."""
        return self._query(shared, self._cast(candidates), len(candidates))

    def _cast(self, table: pa.Table) -> dict[str, pa.Array]:
        made = {}
        names = table.column_names
        for place, name in enumerate(names):
            if name not in self._known:
                raise self._no_such("column", name)
            if names.count(name) > 1:
                raise SampleError(f"{name}: {names.count(name)} columns have this name")
            if name not in self.columns:
                continue
            found, column = table.column(place).combine_chunks(), self.columns[name]
            try:
                made[name] = column.cast(found)
            except (pa.ArrowException, ValueError, TypeError, LookupError) as error:
                raise SampleError(f"{name}: a column of {found.type}; {column.described} is expected") from error
        self._check_weights(made, lambda column, number: f"{column}[{number}]")
        return made


def _or_nulls(array: pa.Array | None, count: int, column: Column) -> pa.Array:
    return pa.nulls(count, column.arrow) if array is None else array


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
