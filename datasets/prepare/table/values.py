"""SQL for what a column's values are: null where they are missing, and typed as the kind of a field wants them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from asymdiffrec.datasets.prepare.table.sql import literal, literals, quoted

LARGEST = "3.4028234663852886e38"
"""Of a 32-bit float"""


def is_text(kind: str) -> bool:
    return kind == "VARCHAR" or kind.startswith("ENUM")


def is_integer(kind: str) -> bool:
    return re.fullmatch(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?", kind) is not None


def is_number(kind: str) -> bool:
    return is_integer(kind) or kind in ("FLOAT", "DOUBLE", "BOOLEAN") or kind.startswith("DECIMAL")


def is_list(kind: str) -> bool:
    return kind.endswith("]")


def is_id_list(kind: str) -> bool:
    """Whether a column holds lists of integers or of strings."""
    element = re.sub(r"\[\d*\]$", "", kind)
    return is_list(kind) and (is_text(element) or is_integer(element))


def is_time(kind: str) -> bool:
    return kind.startswith(("TIMESTAMP", "DATE"))


@dataclass(frozen=True)
class Value:
    """An expression over the samples, and one that is true where what stands there is not allowed."""

    sql: str
    wrong: str = "false"
    allowed: str = ""


def present(column: str, kind: str, missing: Sequence[str]) -> str:
    """A column's value as it stands, null where it is missing."""
    name = quoted(column)
    if is_text(kind):
        return f"CASE WHEN {name} IN {_tuple(['', *missing])} THEN NULL ELSE {name}::VARCHAR END"
    if kind in ("FLOAT", "DOUBLE"):
        return f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END"
    return name


def _tuple(values: Sequence[str]) -> str:
    return f"({', '.join(map(literal, values))})"


def integer(value: str, kind: str) -> Value:
    """64-bit integers; text has to be one in its usual form, for 007 and 7 are two ids."""
    if is_integer(kind) and "HUGE" not in kind:
        return Value(value)
    cast = f"try_cast({value} AS BIGINT)"
    same = "HUGEINT" if is_integer(kind) else "DOUBLE" if is_number(kind) else "VARCHAR"
    return Value(cast, _unless(f"{cast}::{same} = {value}", value), "a 64-bit integer in its usual form")


def within(ids: Value, listed: bool, rows: int) -> Value:
    """Ids, or lists of them, that are rows of a table."""
    least, most = (f"list_{end}({ids.sql})" if listed else ids.sql for end in ("min", "max"))
    wrong = f"({ids.wrong}) OR coalesce({least} < 0 OR {most} >= {rows}, false)"
    return Value(ids.sql, wrong, f"0 to {rows - 1}, for the field has hash: false")


def number(value: str, kind: str) -> Value:
    """Double precision numbers that a 32-bit float can hold."""
    cast = f"try_cast({value} AS DOUBLE)"
    return Value(
        f"nullif({cast}, 'nan'::DOUBLE)", _unless(f"(isnan({cast}) OR abs({cast}) <= {LARGEST})", value), "a number"
    )


def string(value: str) -> Value:
    return Value(f"{value}::VARCHAR")


def tokens(value: str, kind: str, separator: str, missing: Sequence[str]) -> str:
    """The ids of a list, as text where the column is text."""
    if is_list(kind) and not kind.startswith("VARCHAR"):
        return value
    split = f"list_transform(string_split({value}, {literal(separator)}), lambda x: trim(x))"
    parts = value if is_list(kind) else split
    return f"list_filter({parts}, lambda x: NOT list_contains({literals(['', *missing])}, x))"


def id_list(value: str, kind: str, separator: str, missing: Sequence[str], values: str) -> Value:
    """Lists of integers or of strings."""
    found = tokens(value, kind, separator, missing)
    if values == "string":
        return Value(f"{found}::VARCHAR[]")
    cast = f"list_transform({found}, lambda x: try_cast(x AS BIGINT))"
    right = f"list_count({cast}) = list_count({found})"
    if is_text(kind.removesuffix("[]")):
        right = f"{cast}::VARCHAR[] = {found}"
    return Value(cast, _unless(right, value), "a list of 64-bit integers in their usual form")


def id_weights(value: str, ids: Value) -> Value:
    """Lists of as many numbers as there are ids."""
    found = f"{value}::DOUBLE[]"
    count, right = f"coalesce(len({ids.sql}), 0)", f"list_filter({found}, lambda x: x BETWEEN 0 AND {LARGEST})"
    wrong = f"coalesce(len({found}), 0) != {count} OR coalesce(len({right}), 0) != {count}"
    return Value(found, wrong, "a number of at least 0 for each id")


def label(value: str, positive: Sequence[str] | None, at_least: float | None) -> Value:
    """0 or 1; a label cannot be missing."""
    if positive is not None:
        return Value(f"({value}::VARCHAR IN {_tuple(positive)})::TINYINT", f"{value} IS NULL", "a value")
    if at_least is not None:
        cast = f"try_cast({value} AS DOUBLE)"
        return Value(f"({cast} >= {at_least})::TINYINT", f"{cast} IS NULL OR isnan({cast})", "a number")
    cast = f"coalesce(try_cast({value} AS DOUBLE), try_cast({value} AS BOOLEAN)::DOUBLE)"
    allowed = "0 or 1 (say which values are positive with --positive or --at-least)"
    return Value(f"{cast}::TINYINT", f"coalesce({cast} NOT IN (0, 1), true)", allowed)


def weight(value: str, kind: str) -> Value:
    found = number(value, kind)
    return Value(found.sql, f"{found.wrong} OR coalesce({found.sql} < 0, true)", "a number of at least 0")


def moment(value: str, kind: str) -> Value:
    """Times that have an order: numbers as they are, or time stamps; none may be missing."""
    if is_number(kind) or is_time(kind):
        return Value(value, f"{value} IS NULL", "a time")
    seconds = f"coalesce(try_cast({value} AS DOUBLE), epoch(try_cast({value} AS TIMESTAMP)))"
    return Value(seconds, f"{seconds} IS NULL", "a number, or a date as 2026-01-31 12:00:00")


def _unless(right: str, value: str) -> str:
    return f"{value} IS NOT NULL AND NOT coalesce({right}, false)"
