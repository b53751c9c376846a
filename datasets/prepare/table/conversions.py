"""Write SQL that checks the values of a raw column and converts them to the type of a field, with null for missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asymdiffrec.datasets.prepare.table.duckdb_types import is_float, is_integer, is_list, is_number, is_text, is_time
from asymdiffrec.datasets.prepare.table.sql import list_literal, literal, quote_name

MAX_FLOAT32 = "3.4028234663852886e38"
INTEGER_FORM = "a 64-bit integer without leading zeros"


@dataclass(frozen=True)
class Conversion:
    """An SQL expression for the values of a column, and an SQL condition that checks the raw values."""

    sql: str
    """The converted value; null if the value is missing"""
    invalid: str = "false"
    """SQL condition that is true if the raw value is not allowed"""
    allowed: str = ""
    """The allowed values, for error messages"""


def present_value(column: str, duckdb_type: str, missing: Sequence[str]) -> str:
    """Return SQL for the raw value of a column; null for NaN, an empty string or a string in `missing`."""
    name = quote_name(column)
    if is_text(duckdb_type):
        return f"CASE WHEN {name} IN {_tuple(['', *missing])} THEN NULL ELSE {name}::VARCHAR END"
    if is_float(duckdb_type):
        return f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END"
    return name


def _tuple(values: Sequence[str]) -> str:
    return f"({', '.join(map(literal, values))})"


def integer(value: str, duckdb_type: str) -> Conversion:
    """Return the conversion to 64-bit integers. Text must be in canonical form, because 007 and 7 are different ids."""
    if is_integer(duckdb_type) and "HUGE" not in duckdb_type:
        return Conversion(value)
    cast = f"try_cast({value} AS BIGINT)"
    common = "HUGEINT" if is_integer(duckdb_type) else "DOUBLE" if is_number(duckdb_type) else "VARCHAR"
    return Conversion(cast, _present_unless(f"{cast}::{common} = {value}", value), INTEGER_FORM)


def require_table_row(ids: Conversion, is_list_field: bool, num_embeddings: int) -> Conversion:
    """Return a conversion in which ids (or lists of ids) outside the rows of an embedding table are not allowed."""
    smallest, largest = (f"list_{end}({ids.sql})" if is_list_field else ids.sql for end in ("min", "max"))
    invalid = f"({ids.invalid}) OR coalesce({smallest} < 0 OR {largest} >= {num_embeddings}, false)"
    return Conversion(ids.sql, invalid, f"0 to {num_embeddings - 1}, because the field has hash: false")


def number(value: str, duckdb_type: str) -> Conversion:
    """Return the conversion to fp64 numbers in the range of fp32."""
    cast = f"try_cast({value} AS DOUBLE)"
    return Conversion(
        f"nullif({cast}, 'nan'::DOUBLE)",
        _present_unless(f"(isnan({cast}) OR abs({cast}) <= {MAX_FLOAT32})", value),
        "a number up to 3.4e38",
    )


def string(value: str) -> Conversion:
    """Return the conversion to strings."""
    return Conversion(f"{value}::VARCHAR")


def list_elements(value: str, duckdb_type: str, separator: str, missing: Sequence[str]) -> str:
    """Return SQL for the ids of a list, or of text with separators, without empty and missing ids."""
    if is_list(duckdb_type) and not duckdb_type.startswith("VARCHAR"):
        return value
    split = f"list_transform(string_split({value}, {literal(separator)}), lambda x: trim(x))"
    parts = value if is_list(duckdb_type) else split
    return f"list_filter({parts}, lambda x: NOT list_contains({list_literal(['', *missing])}, x))"


def id_list(value: str, duckdb_type: str, separator: str, missing: Sequence[str], values: str) -> Conversion:
    """Return the conversion to lists of 64-bit integers (if `values` is int) or of strings (if `values` is string)."""
    elements = list_elements(value, duckdb_type, separator, missing)
    if values == "string":
        return Conversion(f"{elements}::VARCHAR[]")
    cast = f"list_transform({elements}, lambda x: try_cast(x AS BIGINT))"
    valid = f"list_count({cast}) = list_count({elements})"
    if is_text(duckdb_type.removesuffix("[]")):
        valid = f"{cast}::VARCHAR[] = {elements}"
    return Conversion(cast, _present_unless(valid, value), "a list of 64-bit integers without leading zeros")


def id_weights(value: str, ids: Conversion) -> Conversion:
    """Return the conversion to lists of weights, with one weight for each id of the list `ids`."""
    weights = f"{value}::DOUBLE[]"
    count = f"coalesce(len({ids.sql}), 0)"
    valid = f"list_filter({weights}, lambda x: x BETWEEN 0 AND {MAX_FLOAT32})"
    invalid = f"coalesce(len({weights}), 0) != {count} OR coalesce(len({valid}), 0) != {count}"
    return Conversion(weights, invalid, "one number of at least 0 for each id")


def label(value: str, positive: Sequence[str] | None, at_least: float | None) -> Conversion:
    """Return the conversion to label 0 or 1; a missing label is not allowed."""
    if positive is not None:
        return Conversion(f"({value}::VARCHAR IN {_tuple(positive)})::TINYINT", f"{value} IS NULL", "a value")
    if at_least is not None:
        cast = f"try_cast({value} AS DOUBLE)"
        return Conversion(f"({cast} >= {at_least})::TINYINT", f"{cast} IS NULL OR isnan({cast})", "a number")
    cast = f"coalesce(try_cast({value} AS DOUBLE), try_cast({value} AS BOOLEAN)::DOUBLE)"
    allowed = "0 or 1 (--positive or --at-least can define label 1 for other values)"
    return Conversion(f"{cast}::TINYINT", f"coalesce({cast} NOT IN (0, 1), true)", allowed)


def sample_weight(value: str, duckdb_type: str) -> Conversion:
    """Return the conversion to numbers of at least 0; a missing weight is not allowed."""
    weight = number(value, duckdb_type)
    return Conversion(weight.sql, f"{weight.invalid} OR coalesce({weight.sql} < 0, true)", "a number from 0 to 3.4e38")


def sample_time(value: str, duckdb_type: str) -> Conversion:
    """Return the conversion to times: numbers, dates and timestamps are kept; a text is a number or a date.

    A date in a text becomes seconds since 1970. A missing time is not allowed.
    """
    if is_number(duckdb_type) or is_time(duckdb_type):
        return Conversion(value, f"{value} IS NULL", "a time")
    seconds = f"coalesce(try_cast({value} AS DOUBLE), epoch(try_cast({value} AS TIMESTAMP)))"
    return Conversion(seconds, f"{seconds} IS NULL", "a number, or a date such as 2026-01-31 12:00:00")


def _present_unless(valid: str, value: str) -> str:
    """Return an SQL condition that is true if the value is present and does not meet the condition `valid`."""
    return f"{value} IS NOT NULL AND NOT coalesce({valid}, false)"
