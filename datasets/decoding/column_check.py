"""Check the column types in the footers of Parquet files against a schema, before any row is read."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.column_types import describe_types, fits_field, is_id, is_numeric, is_weights
from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.datasets.shards import Shards


def check_columns(schema: Schema, shards: Shards, labelled: bool) -> None:
    """Raise InputError if a column is absent from a file or has a type that cannot be decoded.

    The columns of all fields are checked. If `labelled` is true, label, weight, user and time are checked too.
    """
    for file, arrow_schema in zip(shards.files, shards.schemas, strict=True):
        for name, field in schema.fields.items():
            column_type = _column_type(arrow_schema, schema.column(name), file, f"field {name}")
            if not fits_field(column_type, field):
                raise InputError(
                    f"{file}: column {schema.column(name)} is {column_type}; "
                    f"field {name} of type {field.type} needs {describe_types(field)}"
                )
            if isinstance(field, IdListConfig) and field.weights:
                column_type = _column_type(arrow_schema, field.weights, file, f"weights of field {name}")
                if not is_weights(column_type):
                    raise InputError(
                        f"{file}: column {field.weights} is {column_type}; "
                        f"the weights of field {name} need a list of numbers"
                    )
        if labelled:
            _check_labelled_columns(schema, arrow_schema, file)


def _check_labelled_columns(schema: Schema, arrow_schema: pa.Schema, file: str) -> None:
    data = schema.data
    checks: list[tuple[str, str | None, Callable[[pa.DataType], bool], str]] = [
        ("label", data.label, is_numeric, "a number or bool, 0 or 1"),
        ("weight", data.weight, is_numeric, "a number of at least 0"),
        ("user", data.user, is_id, "an integer or a string"),
        ("time", data.time, lambda column_type: True, "any type"),
    ]
    for setting, column, is_allowed, allowed in checks:
        if column:
            column_type = _column_type(arrow_schema, column, file, f"data.{setting}")
            if not is_allowed(column_type):
                raise InputError(f"{file}: {setting} column {column} is {column_type}; allowed is {allowed}")


def _column_type(arrow_schema: pa.Schema, column: str, file: str, needed_by: str) -> pa.DataType:
    indices = arrow_schema.get_all_field_indices(column)
    if len(indices) != 1:
        problem = "lacks" if not indices else "has more than once"
        raise InputError(
            f"{file}: {problem} the column {column} ({needed_by}); its columns are {', '.join(arrow_schema.names)}"
        )
    return arrow_schema.field(indices[0]).type
