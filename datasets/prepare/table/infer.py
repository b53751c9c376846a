"""Which columns are fields, and of which kind, told from what they hold; each choice with its reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asymdiffrec.datasets.prepare.table import values
from asymdiffrec.datasets.prepare.table.recipe import RecipeField
from asymdiffrec.datasets.prepare.table.survey import SEPARATORS, Column

LABELS = ("label", "click", "clicked", "is_click", "target", "y")
USERS = ("user_id", "userid", "user", "uid")
TIMES = ("timestamp", "time", "ts", "datetime", "event_time", "date")
FEW = 20
"""Distinct integers up to which they are rather names of things than amounts"""
NAMES = 0.9
"""Distinct values a row that has one, from where on a column rather names its row; they are estimates"""
PROSE = 50
"""Mean number of characters from where on text is prose"""
ROOM = ((100, 100_000), (10, 1_000_000))
"""Rows of a table for each id, up to so many rows: small tables cost nothing. Beyond, two rows for each id"""
SMALLEST = 1000


@dataclass(frozen=True)
class Choice:
    """What becomes of a column: a field of a kind, or none (None), and why."""

    column: str
    kind: str | None
    reason: str


def guessed(names: tuple[str, ...], columns: Mapping[str, Any]) -> str | None:
    """The first column that has one of the names, whatever its case."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def choose(column: Column) -> Choice:
    """What a column that nobody declared becomes."""
    kind, reason = _chosen(column)
    return Choice(column.name, kind, reason)


def _chosen(column: Column) -> tuple[str | None, str]:
    many = f"about {column.distinct:,} distinct"
    if not column.present:
        return None, "never has a value"
    if values.is_list(column.kind) and not values.is_id_list(column.kind):
        return None, f"lists of type {column.kind} hold no ids"
    if values.is_list(column.kind) or column.separator:
        between = f", with {column.separator} between them" if column.separator else ""
        return "id_list", f"lists of {column.length:.1f} ids on average{between}; {many}"
    if column.distinct == 1 and column.present == column.rows:
        return None, "has the same value in every row"
    if values.is_time(column.kind):
        return None, "is a time; name it with --time to split by it"
    names_row = column.present >= 1000 and column.distinct >= NAMES * column.present
    if column.integers == column.present and not _is_fraction(column):
        return _integers(column, many, names_row)
    if column.numbers == column.present:
        if column.padded or _named_id(column.name):
            return "id", f"numbers with {'leading zeros' if column.padded else 'a name that says id'}; {many}"
        if max(abs(column.least or 0), abs(column.most or 0)) >= 2**53 and column.kind not in ("FLOAT", "DOUBLE"):
            return "id", f"numbers too large to be amounts; {many}"
        if values.is_text(column.kind) and column.distinct <= FEW:
            return "id", f"only {column.distinct} different numbers"
        return "number", f"numbers from {column.least:g} to {column.most:g}"
    if not values.is_text(column.kind):
        return None, f"a column of type {column.kind} cannot be a field"
    if column.length >= PROSE:
        return None, f"text of {column.length:.0f} characters on average"
    if names_row:
        return None, f"has another value in nearly each row ({many})"
    return "id", f"text; {many}"


def _is_fraction(column: Column) -> bool:
    """Whether a column of floats holds whole numbers by chance: they are amounts unless they are few."""
    return column.kind in ("FLOAT", "DOUBLE") and not _named_id(column.name) and column.distinct > FEW


def _integers(column: Column, many: str, names_row: bool) -> tuple[str | None, str]:
    if _named_id(column.name):
        return ("id", f"integers whose name says id; {many}") if not names_row else (None, f"names its row ({many})")
    if column.distinct <= FEW:
        return "id", f"only {column.distinct} different integers"
    assert column.least is not None
    assert column.most is not None
    if max(-column.least, column.most) >= 2**31:
        return "id", f"integers too large to be amounts; {many}"
    return "number", f"integers from {column.least:,.0f} to {column.most:,.0f}; {many}"


def _named_id(name: str) -> bool:
    words = name.lower().replace("-", "_").split("_")
    return any(re.fullmatch(r"id\d*", word) for word in words) or name.endswith(("Id", "ID"))


def declared(column: Column, kind: str, given: RecipeField, ids: int, min_count: int) -> dict[str, Any]:
    """A field of the job file: what was given, and for the rest what the column suggests.

    `ids` are the distinct ids that will count as themselves.
    """
    keys = given.model_dump(exclude_none=True, exclude={"separator", "missing", "column"})
    if kind == "number":
        return {"type": kind} | keys
    whole = column.integers == (column.numbers if kind == "id_list" else column.present) and column.integers > 0
    field: dict[str, Any] = {
        "type": kind,
        "num_embeddings": suggested_rows(ids),
        "values": "int" if whole else "string",
    }
    field |= {"min_count": min_count} if min_count > 1 else {}
    return field | keys


def suggested_rows(ids: int) -> int:
    """Rows of a table for some distinct ids, rounded up to two digits: most ids get a row to themselves."""
    rows = max(SMALLEST, 2 * ids, *(min(each * ids, most) for each, most in ROOM))
    step = 10 ** max(math.floor(math.log10(rows)) - 1, 0)
    return math.ceil(rows / step) * step


def shared(ids: int, rows: int) -> float:
    """The share of ids that share their row with another one, 1 - exp(-ids / rows), as random hashes make it."""
    return abs(math.expm1(-ids / rows))


def separator_of(column: Column, given: RecipeField) -> str:
    return given.separator or column.separator or SEPARATORS[0]
