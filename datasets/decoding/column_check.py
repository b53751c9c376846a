"""Whether the columns of Parquet files can serve a schema: known from the footers, before a row is read."""

from __future__ import annotations

import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding import columns
from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.datasets.shards import Shards


def check_columns(schema: Schema, shards: Shards, labelled: bool) -> None:
    """Raise InputError where a file lacks a column that is needed or holds it in a type that cannot serve."""
    data = schema.data
    for file, arrow in zip(shards.files, shards.schemas, strict=True):
        for name, field in schema.fields.items():
            kind = _column_type(arrow, schema.column(name), file, f"field {name}")
            if not columns.accepts(field, kind):
                raise InputError(
                    f"{file}: column {schema.column(name)} is {kind}; "
                    f"field {name} of type {field.type} needs {columns.allowed(field)}"
                )
            if isinstance(field, IdListConfig) and field.weights:
                kind = _column_type(arrow, field.weights, file, f"weights of field {name}")
                if not columns.is_weights(kind):
                    raise InputError(
                        f"{file}: column {field.weights} is {kind}; the weights of field {name} need a list of numbers"
                    )
        if labelled:
            kind = _column_type(arrow, data.label, file, "data.label")
            if not columns.is_number(kind):
                raise InputError(f"{file}: label column {data.label} is {kind}; allowed is a number or bool, 0 or 1")
            if data.weight and not columns.is_number(kind := _column_type(arrow, data.weight, file, "data.weight")):
                raise InputError(f"{file}: weight column {data.weight} is {kind}; allowed is a number of at least 0")
            if data.user and not columns.is_id(kind := _column_type(arrow, data.user, file, "data.user")):
                raise InputError(f"{file}: user column {data.user} is {kind}; allowed is an integer or a string")
            if data.time:
                _column_type(arrow, data.time, file, "data.time")


def _column_type(arrow: pa.Schema, column: str, file: str, who: str) -> pa.DataType:
    found = arrow.get_all_field_indices(column)
    if len(found) != 1:
        problem = "lacks" if not found else "has more than once"
        raise InputError(f"{file}: {problem} the column {column} ({who}); its columns are {', '.join(arrow.names)}")
    return arrow.field(found[0]).type
