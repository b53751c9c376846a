"""Samples of a request as the table that `decode` takes, or a message that names what is wrong with which field."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.schema import HashedConfig, IdListConfig, Schema

MOST_IDS = 10_000
"""Of one list"""


class BadRequestError(ValueError):
    """What the sender of a request has to change."""


def table_of(samples: Sequence[Any], schema: Schema) -> pa.Table:
    """A row for each sample, an object of values by column; a field that is absent or null is missing.

    Ids that are no row of a table with `hash: false` are missing, too. Raises BadRequestError with the place of the
    sample, the column, what was found and what is allowed.
    """
    columns = _columns(schema)
    beside = {name for name in (schema.data.label, schema.data.user, schema.data.time, schema.data.weight) if name}
    for place, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise BadRequestError(f"samples[{place}]: found {_shown(sample)}; an object of columns is expected")
        for name in sample:
            if name not in columns and name not in beside:
                close = difflib.get_close_matches(str(name), columns, 1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(columns)}"
                raise BadRequestError(f"samples[{place}].{name}: no such column; {hint}")
    return pa.table(
        {name: _array([sample.get(name) for sample in samples], name, what) for name, what in columns.items()}
    )


def checked(table: pa.Table, schema: Schema) -> pa.Table:
    """A table of an Arrow body, with ids that are no rows missing as `table_of` has it.

    Raises BadRequestError where a column is of a type that its field cannot be.
    """
    columns, made = _columns(schema), {}
    for name, what in columns.items():
        if name not in table.column_names:
            made[name] = pa.nulls(len(table), _type(what))
            continue
        found = table.column(name).combine_chunks()
        try:
            made[name] = _within(found.cast(_type(what)), what)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadRequestError(f"{name}: a column of {found.type}; {_allowed(what)} is expected") from error
    return pa.table(made)


def _columns(schema: Schema) -> dict[str, Any]:
    """The columns that samples are decoded from, with their fields; "weights" for those that weigh ids."""
    columns: dict[str, Any] = {schema.column(name): field for name, field in schema.fields.items()}
    for field in schema.fields.values():
        if isinstance(field, IdListConfig) and field.weights:
            columns[field.weights] = "weights"
    return columns


def _type(what: Any) -> pa.DataType:
    if what == "weights":
        return pa.list_(pa.float64())
    if not isinstance(what, HashedConfig):
        return pa.float64()
    value = pa.string() if what.values == "string" else pa.int64()
    return pa.list_(value) if isinstance(what, IdListConfig) else value


def _allowed(what: Any) -> str:
    if what == "weights":
        return "a list of numbers"
    if not isinstance(what, HashedConfig):
        return "a number"
    value = "string" if what.values == "string" else "integer"
    return f"a list of {value}s" if isinstance(what, IdListConfig) else f"{'an' if value == 'integer' else 'a'} {value}"


def _array(values: list[Any], name: str, what: Any) -> pa.Array:
    for place, value in enumerate(values):
        if not _fits(value, what):
            raise BadRequestError(f"samples[{place}].{name}: found {_shown(value)}; {_allowed(what)} is expected")
        if isinstance(value, list) and len(value) > MOST_IDS:
            raise BadRequestError(f"samples[{place}].{name}: {len(value):,} ids; {MOST_IDS:,} are allowed")
    return _within(pa.array(values, _type(what)), what)


def _fits(value: Any, what: Any) -> bool:
    if value is None:
        return True
    if isinstance(what, IdListConfig) or what == "weights":
        return isinstance(value, list) and all(_is_one(one, what) for one in value)
    return _is_one(value, what)


def _is_one(value: Any, what: Any) -> bool:
    if what == "weights" or not isinstance(what, HashedConfig):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.4e38
    if what.values == "string":
        return isinstance(value, str)
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _within(array: pa.Array, what: Any) -> pa.Array:
    """The array without ids that are no rows, where ids are rows."""
    if not isinstance(what, HashedConfig) or what.hash or what.values != "int":
        return array
    if not isinstance(what, IdListConfig):
        inside = pc.and_(pc.greater_equal(array, 0), pc.less(array, what.rows))
        return pc.if_else(inside, array, pa.scalar(None, array.type))
    flat, parents = array.flatten(), pc.list_parent_indices(array)
    inside = pc.fill_null(pc.and_(pc.greater_equal(flat, 0), pc.less(flat, what.rows)), False)
    if pc.all(inside).as_py() in (True, None):
        return array
    kept = np.bincount(parents.filter(inside).to_numpy(), minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, flat.filter(inside), mask=array.is_null())


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
