"""The Arrow types that are allowed for the columns of a schema."""

from __future__ import annotations

import pyarrow as pa

from asymdiffrec.datasets.schema import AnyField, IdListConfig, NumericFieldConfig


def is_numeric(column_type: pa.DataType) -> bool:
    """Return whether values of an Arrow type are numbers: floats, integers, bools or decimals."""
    types = pa.types
    return (
        types.is_floating(column_type)
        or types.is_integer(column_type)
        or types.is_boolean(column_type)
        or types.is_decimal(column_type)
    )


def is_string(column_type: pa.DataType) -> bool:
    """Return whether values of an Arrow type are strings; a dictionary of strings does not count."""
    return pa.types.is_string(column_type) or pa.types.is_large_string(column_type)


def is_id(column_type: pa.DataType) -> bool:
    """Return whether values of an Arrow type can be ids: integers or strings, plain or dictionary-encoded."""
    if pa.types.is_dictionary(column_type):
        return is_id(column_type.value_type)
    return pa.types.is_integer(column_type) or is_string(column_type)


def is_list(column_type: pa.DataType) -> bool:
    """Return whether values of an Arrow type are lists of variable or fixed length."""
    types = pa.types
    return types.is_list(column_type) or types.is_large_list(column_type) or types.is_fixed_size_list(column_type)


def is_weights(column_type: pa.DataType) -> bool:
    """Return whether a column of an Arrow type can hold the weights of an id list.

    The type null is allowed for the column and for the list elements: Arrow uses it if a column has no values.
    """
    if pa.types.is_null(column_type):
        return True
    return is_list(column_type) and (pa.types.is_null(column_type.value_type) or is_numeric(column_type.value_type))


def fits_field(column_type: pa.DataType, field: AnyField) -> bool:
    """Return whether a column of an Arrow type can hold the values of a field; the type null is allowed."""
    if pa.types.is_null(column_type):
        return True
    if isinstance(field, NumericFieldConfig):
        return is_numeric(column_type)
    if isinstance(field, IdListConfig):
        return is_list(column_type) and (pa.types.is_null(column_type.value_type) or is_id(column_type.value_type))
    return is_id(column_type)


def describe_types(field: AnyField) -> str:
    """Return the column types that `fits_field` allows, for error messages."""
    if isinstance(field, NumericFieldConfig):
        return "a number"
    return "a list of integers or strings" if isinstance(field, IdListConfig) else "an integer or a string"
