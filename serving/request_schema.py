"""Check the columns of the samples in a request, and convert the samples to a table that `decode` reads."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.decoding.arrays import as_float64, list_lengths
from asymdiffrec.datasets.decoding.value_rules import first_wrong_weight
from asymdiffrec.datasets.schema import IdListConfig, Schema, SparseFieldConfig
from asymdiffrec.serving.errors import SampleError
from asymdiffrec.serving.request_column import MAX_LIST_LENGTH, RequestColumn, drop_values

Samples = Sequence[Any] | Mapping[str, Any]
"""Samples in JSON: a list of objects {column: value}, or one object {column: list of values}"""
Locate = Callable[[str, int], str]
"""A function that takes a column and the index of a sample; it returns the location of the value, for error messages"""


class Query(NamedTuple):
    """Candidates to rank: their shared columns, and the columns of each candidate."""

    shared: Mapping[str, pa.Array]
    """An array [1] for each shared column"""
    candidates: Mapping[str, pa.Array]
    """An array [num_candidates] for each further column; no column is in both mappings"""
    num_candidates: int


class RequestSchema:
    """The columns of the samples in requests, derived from a schema.

    A field whose column is absent or null is missing. An id outside the table of a field with `hash: false` is missing
    too, because the server must also score items that are newer than the model.

        RequestSchema(schema).table([{"user_id": 5, "item_id": 7}])
    """

    def __init__(self, schema: Schema) -> None:
        data = schema.data
        self.columns: dict[str, RequestColumn] = {}
        self.weights = {
            schema.column(name): field.weights
            for name, field in schema.fields.items()
            if isinstance(field, IdListConfig) and field.weights
        }
        for name, field in schema.fields.items():
            is_list, num_embeddings = isinstance(field, IdListConfig), None
            kind: type = float
            if isinstance(field, SparseFieldConfig):
                kind = str if field.values == "string" else int
                num_embeddings = None if field.hash or kind is str else field.num_embeddings
            self._add(schema.column(name), RequestColumn(kind, is_list, num_embeddings))
        for weights in self.weights.values():
            self._add(weights, RequestColumn(float, True, None))
        # The training data also have these columns. Requests may contain them, but they are ignored.
        ignored = {name for name in (data.label, data.user, data.time, data.weight) if name}
        self._accepted = ignored | self.columns.keys()

    def _add(self, name: str, column: RequestColumn) -> None:
        """Add a column. If fields of different kinds read the column, it holds integers: all kinds accept integers."""
        existing = self.columns.setdefault(name, column)
        if existing != column:
            limits = [part.num_embeddings for part in (existing, column) if part.num_embeddings is not None]
            self.columns[name] = RequestColumn(int, column.is_list, min(limits, default=None))

    def table(self, samples: Samples) -> pa.Table:
        """Convert JSON samples to a table with all columns; raise SampleError if a sample is wrong."""
        values, count, locate = self._values_by_column(samples, "samples")
        return self._table(self._arrays(values, locate), count)

    def table_from_arrow(self, table: pa.Table) -> pa.Table:
        """Convert an Arrow table of samples to a table with all columns; raise SampleError if a column is wrong."""
        return self._table(self._cast(table), len(table))

    def query(self, shared: Any, candidates: Samples) -> Query:
        """Return a query with the candidates of a JSON request.

        shared: an object {column: value} with the values that all candidates share.
        candidates: JSON samples with the other columns.

        Raises SampleError if a sample is wrong, or if a column is in `shared` and also in `candidates`.
        """
        values, count, locate = self._values_by_column(candidates, "candidates")
        return self._query(shared, self._arrays(values, locate), count)

    def query_from_arrow(self, shared: Any, candidates: pa.Table) -> Query:
        """Return a query whose candidates are in an Arrow table, see `query`."""
        return self._query(shared, self._cast(candidates), len(candidates))

    def query_table(self, queries: Sequence[Query]) -> pa.Table:
        """Return a table with all columns: first one row per query with its shared columns, then one row per candidate.

        Candidates are in the order of the queries. Columns that a row does not have are null.
        """
        count = sum(query.num_candidates for query in queries)
        arrays = {}
        for name, column in self.columns.items():
            shared = [_or_nulls(query.shared.get(name), 1, column) for query in queries]
            candidates = [query.candidates[name] for query in queries if name in query.candidates]
            arrays[name] = pa.concat_arrays([*shared, *(candidates or [_or_nulls(None, count, column)])])
        return pa.table(self._drop_out_of_range(arrays))

    def _query(self, shared: Any, candidates: Mapping[str, pa.Array], count: int) -> Query:
        values = self._transpose([shared], lambda index: "shared")
        arrays = self._arrays(values, lambda column, index: f"shared.{column}")
        if both := arrays.keys() & candidates.keys():
            raise SampleError(f"candidates: the column {min(both)} is also in shared; send it in only one of them")
        return Query(arrays, candidates, count)

    def _table(self, arrays: Mapping[str, pa.Array], count: int) -> pa.Table:
        arrays = self._drop_out_of_range(arrays)
        return pa.table({name: _or_nulls(arrays.get(name), count, column) for name, column in self.columns.items()})

    def _values_by_column(self, samples: Samples, name: str) -> tuple[dict[str, list[Any]], int, Locate]:
        """Return the values by column, the number of samples, and the function that locates a value.

        `name` is the key of the samples in the request.
        """
        if isinstance(samples, Mapping):
            values, count = self._check_lists(samples, name)
            return values, count, lambda column, index: f"{name}.{column}[{index}]"
        values = self._transpose(samples, lambda index: f"{name}[{index}]")
        return values, len(samples), lambda column, index: f"{name}[{index}].{column}"

    def _transpose(self, samples: Sequence[Any], locate: Callable[[int], str]) -> dict[str, list[Any]]:
        """Convert a list of objects to lists of values by column, for the columns that occur in at least one object."""
        names: set[str] = set()
        for index, sample in enumerate(samples):
            if type(sample) is not dict:
                raise SampleError(f"{locate(index)}: found {_shorten(sample)}; an object of columns is expected")
            names |= sample.keys()
        if not names <= self._accepted:
            unknown = min(names - self._accepted)
            index = next(index for index, sample in enumerate(samples) if unknown in sample)
            raise self._unknown_column(locate(index), unknown)
        return {name: [sample.get(name) for sample in samples] for name in self.columns if name in names}

    def _check_lists(self, lists: Mapping[str, Any], location: str) -> tuple[dict[str, list[Any]], int]:
        """Check an object of lists; return its lists of values by column, and the number of samples."""
        if not lists.keys() <= self._accepted:
            raise self._unknown_column(location, min(lists.keys() - self._accepted))
        for name, values in lists.items():
            if type(values) is not list:
                raise SampleError(f"{location}.{name}: found {_shorten(values)}; a list of values is expected")
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            short, long = (choose(lengths, key=lambda name: lengths[name]) for choose in (min, max))
            raise SampleError(
                f"{location}: {short} has {lengths[short]} values, {long} has {lengths[long]}; all columns need one "
                "value per sample"
            )
        by_column = {name: values for name, values in lists.items() if name in self.columns}
        return by_column, next(iter(lengths.values()), 0)

    def _arrays(self, values: Mapping[str, list[Any]], locate: Locate) -> dict[str, pa.Array]:
        """Convert the JSON values of each column to an array."""
        arrays = {}
        for name, column_values in values.items():
            arrays[name] = self.columns[name].from_json(column_values)
            if arrays[name] is None:
                raise self._wrong_value(column_values, name, locate)
        self._check_weights(arrays, locate)
        return arrays

    def _cast(self, table: pa.Table) -> dict[str, pa.Array]:
        """Convert each column of an Arrow table to an array of the expected type."""
        arrays = {}
        names = table.column_names
        for index, name in enumerate(names):
            if name not in self._accepted:
                raise self._unknown_column("column", name)
            if names.count(name) > 1:
                raise SampleError(f"{name}: {names.count(name)} columns have this name; one is allowed")
            if name not in self.columns:
                continue
            array, column = table.column(index).combine_chunks(), self.columns[name]
            try:
                arrays[name] = column.from_arrow(array)
            except (pa.ArrowException, ValueError, TypeError, LookupError) as error:
                raise SampleError(
                    f"{name}: found a column of {array.type}; {column.description} is expected"
                ) from error
        self._check_weights(arrays, lambda column, index: f"{column}[{index}]")
        return arrays

    def _check_weights(self, arrays: Mapping[str, pa.Array], locate: Locate) -> None:
        """Raise SampleError for wrong weights; a null weight is allowed, because its id may be outside the table."""
        for name, weights in self.weights.items():
            if name not in arrays or weights not in arrays:
                continue
            values = as_float64(pc.fill_null(arrays[weights].flatten(), 0))
            if problem := first_wrong_weight(list_lengths(arrays[name]), list_lengths(arrays[weights]), values):
                index, text = problem
                raise SampleError(f"{locate(weights, index)}: {text}")

    def _drop_out_of_range(self, arrays: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
        """Drop the ids that are outside their table, and the weights of these ids.

        If the number of weights of a list differs from the number of ids, the weights stay: `decode` then raises an
        error.
        """
        remaining = dict(arrays)
        for name, array in arrays.items():
            column = self.columns[name]
            drop = column.out_of_range(array)
            if drop is not None:
                remaining[name] = drop_values(array, drop, column.is_list)
                weights = self.weights.get(name)
                if weights in remaining and np.array_equal(list_lengths(array), list_lengths(remaining[weights])):
                    remaining[weights] = drop_values(remaining[weights], drop, True)
        return remaining

    def _unknown_column(self, location: str, name: str) -> SampleError:
        close = difflib.get_close_matches(name, self.columns, 1)
        hint = f"did you mean {close[0]}?" if close else f"the columns are {', '.join(self.columns)}"
        return SampleError(f"{location}.{name}: no such column; {hint}")

    def _wrong_value(self, values: Sequence[Any], name: str, locate: Locate) -> SampleError:
        """Return the error for the first value that is not allowed in a column."""
        column = self.columns[name]
        index = next(index for index, value in enumerate(values) if column.from_json([value]) is None)
        value, location = values[index], locate(name, index)
        if type(value) is list and len(value) > MAX_LIST_LENGTH:
            return SampleError(
                f"{location}: found {len(value):,} ids; at most {MAX_LIST_LENGTH:,} are allowed in a list"
            )
        return SampleError(f"{location}: found {_shorten(value)}; {column.description} is expected")


def _or_nulls(array: pa.Array | None, count: int, column: RequestColumn) -> pa.Array:
    return pa.nulls(count, column.arrow_type) if array is None else array


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
