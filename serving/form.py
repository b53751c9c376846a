"""What samples look like in a request: the table that `decode` takes of them, or what is wrong with which field."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.schema import HashedConfig, IdListConfig, Schema

MOST_IDS = 10_000
"""Of one list"""
LARGEST = 3.4e38
"""Of a number"""


class BadRequestError(ValueError):
    """What the sender of a request has to change."""


@dataclass(frozen=True)
class Column:
    """A column of a sample."""

    kind: type
    """int or str, of ids; float, of numbers"""
    is_list: bool
    rows: int | None
    """Where ids are rows of a table: which of them there are"""

    @property
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
        """The values [B], None where one is missing; None where one of them is no value of the column."""
        if not self._fit(values):
            return None
        try:
            return self.within(pa.array(values, self.arrow))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
            return None

    def _fit(self, values: Sequence[Any]) -> bool:
        """By their types, all at once: a bool is no number, and a number is no id."""
        if self.is_list:
            lists = [value for value in values if value is not None]
            if not {list} >= set(map(type, lists)) or max(map(len, lists), default=0) > MOST_IDS:
                return False
            values = list(chain.from_iterable(lists))
        allowed = {int, float} if self.kind is float else {self.kind}
        if not allowed | {type(None)} >= set(map(type, values)) or (self.is_list and None in values):
            return False
        return self.kind is not float or all(value is None or abs(value) < LARGEST for value in values)

    def within(self, array: pa.Array) -> pa.Array:
        """The array without ids that are no rows, where ids are rows."""
        if self.rows is None:
            return array
        if not self.is_list:
            inside = pc.and_(pc.greater_equal(array, 0), pc.less(array, self.rows))
            return pc.if_else(inside, array, pa.scalar(None, array.type))
        flat, parents = array.flatten(), pc.list_parent_indices(array)
        inside = pc.fill_null(pc.and_(pc.greater_equal(flat, 0), pc.less(flat, self.rows)), False)
        if pc.all(inside).as_py() in (True, None):
            return array
        kept = np.bincount(parents.filter(inside).to_numpy(), minlength=len(array))
        offsets = pa.array(np.concatenate([[0], np.cumsum(kept)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, flat.filter(inside), mask=array.is_null())


class Query(NamedTuple):
    """Candidates, and what they share."""

    table: pa.Table
    """What they share, and then a row for each"""
    own: frozenset[str]
    """The columns that each has for itself"""


class Form:
    """The columns of the samples of a schema. A field that is absent or null is missing; ids that are no row of a table
    with `hash: false` are, too."""

    def __init__(self, schema: Schema) -> None:
        data = schema.data
        self.columns: dict[str, Column] = {}
        for name, field in schema.fields.items():
            is_list = isinstance(field, IdListConfig)
            if not isinstance(field, HashedConfig):
                self.columns[schema.column(name)] = Column(float, False, None)
            elif field.values == "string":
                self.columns[schema.column(name)] = Column(str, is_list, None)
            else:
                self.columns[schema.column(name)] = Column(int, is_list, None if field.hash else field.rows)
            if isinstance(field, IdListConfig) and field.weights:
                self.columns[field.weights] = Column(float, True, None)
        beside = {name for name in (data.label, data.user, data.time, data.weight) if name}
        self._known = beside | self.columns.keys()

    def table(self, samples: Sequence[Any] | Mapping[str, Any]) -> pa.Table:
        """All columns of some samples: an object of values by column for each, or one object with a list of values for
        each column. Raises BadRequestError with the place, the column, what was found and what is allowed."""
        arrays, count = self._arrays(samples, "samples")
        return pa.table({name: _or_nulls(arrays.get(name), count, one) for name, one in self.columns.items()})

    def query(self, shared: Any, candidates: Sequence[Any] | Mapping[str, Any]) -> Query:
        """An object of values by column that all candidates share, and those of each, given as `table` takes samples.

        Raises BadRequestError as `table` does, and where a column is in both.
        """
        return self._query(shared, *self._arrays(candidates, "candidates"))

    def _query(self, shared: Any, own: Mapping[str, pa.Array], count: int) -> Query:
        try:
            common, _ = self._arrays([shared], "shared")
        except BadRequestError as error:
            raise BadRequestError(str(error).replace("shared[0]", "shared", 1)) from error
        if both := common.keys() & own.keys():
            raise BadRequestError(f"candidates: {min(both)} is in shared, too")
        together = {
            name: pa.concat_arrays([_or_nulls(common.get(name), 1, one), _or_nulls(own.get(name), count, one)])
            for name, one in self.columns.items()
        }
        return Query(pa.table(together), frozenset(own))

    def _arrays(self, samples: Sequence[Any] | Mapping[str, Any], place: str) -> tuple[dict[str, pa.Array], int]:
        """Of the columns that some samples have; and the number of samples."""
        by_column = isinstance(samples, Mapping)
        values = self._listed(samples, place) if isinstance(samples, Mapping) else self._gathered(samples, place)
        arrays = {}
        for name, own in values.items():
            arrays[name] = self.columns[name].array(own)
            if arrays[name] is None:
                raise self._wrong(own, name, place, by_column)
        return arrays, len(next(iter(values.values()), ())) if by_column else len(samples)

    def _gathered(self, samples: Sequence[Any], place: str) -> dict[str, list[Any]]:
        found: set[str] = set()
        for number, sample in enumerate(samples):
            if type(sample) is not dict:
                raise BadRequestError(f"{place}[{number}]: found {_shown(sample)}; an object of columns is expected")
            found |= sample.keys()
        if not found <= self._known:
            unknown = min(found - self._known)
            number = next(number for number, sample in enumerate(samples) if unknown in sample)
            raise self._no_such(f"{place}[{number}]", unknown)
        return {name: [sample.get(name) for sample in samples] for name in self.columns if name in found}

    def _listed(self, columns: Mapping[str, Any], place: str) -> dict[str, list[Any]]:
        if not columns.keys() <= self._known:
            raise self._no_such(place, min(columns.keys() - self._known))
        for name, values in columns.items():
            if type(values) is not list:
                raise BadRequestError(f"{place}.{name}: found {_shown(values)}; a list of values is expected")
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            least, most = (choose(lengths, key=lambda name: lengths[name]) for choose in (min, max))
            raise BadRequestError(f"{place}: {lengths[least]} values of {least}, {lengths[most]} of {most}")
        return {name: values for name, values in columns.items() if name in self.columns}

    def _no_such(self, place: str, name: str) -> BadRequestError:
        close = difflib.get_close_matches(name, self.columns, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(self.columns)}"
        return BadRequestError(f"{place}.{name}: no such column; {hint}")

    def _wrong(self, values: Sequence[Any], name: str, place: str, by_column: bool) -> BadRequestError:
        """Of the first value that does not fit by itself."""
        column = self.columns[name]
        number = next(number for number, value in enumerate(values) if column.array([value]) is None)
        where = f"{place}.{name}[{number}]" if by_column else f"{place}[{number}].{name}"
        if type(values[number]) is list and len(values[number]) > MOST_IDS:
            return BadRequestError(f"{where}: {len(values[number]):,} ids; {MOST_IDS:,} are allowed")
        return BadRequestError(f"{where}: found {_shown(values[number])}; {column.described} is expected")

    def checked(self, table: pa.Table) -> pa.Table:
        """All columns of an Arrow table of samples. BadRequestError where one is of a type that it cannot be."""
        arrays = self._cast(table)
        return pa.table({name: _or_nulls(arrays.get(name), len(table), one) for name, one in self.columns.items()})

    def checked_query(self, shared: Any, candidates: pa.Table) -> Query:
        """As `query`, of an Arrow table of candidates."""
        return self._query(shared, self._cast(candidates), len(candidates))

    def _cast(self, table: pa.Table) -> dict[str, pa.Array]:
        made = {}
        for name, column in self.columns.items():
            if name not in table.column_names:
                continue
            found = table.column(name).combine_chunks()
            try:
                made[name] = column.within(found.cast(column.arrow))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise BadRequestError(f"{name}: a column of {found.type}; {column.described} is expected") from error
        return made


def _or_nulls(array: pa.Array | None, count: int, column: Column) -> pa.Array:
    return pa.nulls(count, column.arrow) if array is None else array


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
