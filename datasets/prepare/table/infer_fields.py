"""Infer the type of a field from the content of its column, and explain the decision."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from asymdiffrec.datasets.prepare.table.column_profiles import SEPARATORS, ColumnProfile
from asymdiffrec.datasets.prepare.table.duckdb_types import is_float, is_id_list, is_list, is_text, is_time
from asymdiffrec.datasets.prepare.table.recipe import FieldType, RecipeField

LABEL_NAMES = ("label", "click", "clicked", "is_click", "target", "y")
USER_NAMES = ("user_id", "userid", "user", "uid")
TIME_NAMES = ("timestamp", "time", "ts", "datetime", "event_time", "date")
MAX_CATEGORIES = 20
"""A column with at most this number of distinct integers becomes an id, not a number"""
MIN_UNIQUE_SHARE = 0.9
"""A column is "different in nearly every row" if (distinct values) / (rows with a value) is at least this share"""
MIN_UNIQUE_ROWS = 1000
"""Minimum number of rows with a value to decide that a column is different in nearly every row"""
MIN_TEXT_LENGTH = 50
"""Text with at least this mean number of characters is prose, not an id"""
MAX_AMOUNT = 2**31
"""A column with an integer of at least this size becomes an id, not a number"""
MAX_EXACT_FLOAT = 2**53
ROWS_PER_ID = ((100, 100_000), (10, 1_000_000))
"""(num_embeddings per id, maximum num_embeddings) of suggested small tables; larger tables have two rows per id"""
MIN_NUM_EMBEDDINGS = 1000


@dataclass(frozen=True)
class ColumnChoice:
    """The decision on a column, with its reason. `type` is the type of the field; None: the column becomes no field."""

    column: str
    type: FieldType | None
    reason: str


def first_named(names: tuple[str, ...], columns: Iterable[str]) -> str | None:
    """Return the column with the first name of `names` that occurs in `columns`, ignoring case, or None."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def infer_field(column: ColumnProfile) -> ColumnChoice:
    """Return the inferred type of a column that is not declared as a field."""
    field_type, reason = _infer(column)
    return ColumnChoice(column.name, field_type, reason)


def _infer(column: ColumnProfile) -> tuple[FieldType | None, str]:
    distinct_ids = f"about {column.distinct:,} distinct ids"
    if not column.present:
        return None, "has no value in any row"
    if is_list(column.duckdb_type) and not is_id_list(column.duckdb_type):
        return None, f"has the type {column.duckdb_type}; a list of ids needs integers or strings"
    if is_list(column.duckdb_type) or column.separator:
        separated = f", separated by {column.separator}" if column.separator else ""
        return "id_list", f"lists of {column.length:.1f} ids on average{separated}; {distinct_ids}"
    if column.distinct == 1 and column.present == column.rows:
        return None, "has the same value in every row"
    if is_time(column.duckdb_type):
        return None, "is a time; to split the rows by this column, use --time"
    unique = column.present >= MIN_UNIQUE_ROWS and column.distinct >= MIN_UNIQUE_SHARE * column.present
    if column.integers == column.present and not _is_amount_in_floats(column):
        return _infer_integers(column, distinct_ids, unique)
    if column.numbers == column.present:
        return _infer_numbers(column, distinct_ids)
    if not is_text(column.duckdb_type):
        return None, f"has the type {column.duckdb_type}, which cannot be a field"
    if column.length >= MIN_TEXT_LENGTH:
        return None, f"is long text, {column.length:.0f} characters on average"
    if unique:
        return None, f"is different in nearly every row (about {column.distinct:,} distinct values)"
    return "id", f"text; {distinct_ids}"


def _is_amount_in_floats(column: ColumnProfile) -> bool:
    """Return whether a column of integers with a float type becomes a numeric field.

    It does if it has more than MAX_CATEGORIES distinct values and no id in its name.
    """
    return is_float(column.duckdb_type) and not _is_named_id(column.name) and column.distinct > MAX_CATEGORIES


def _infer_integers(column: ColumnProfile, distinct_ids: str, unique: bool) -> tuple[FieldType | None, str]:
    if _is_named_id(column.name):
        if unique:
            return None, f"is an id that is different in nearly every row ({distinct_ids})"
        return "id", f"integers in a column named as an id; {distinct_ids}"
    if column.distinct <= MAX_CATEGORIES:
        return "id", f"only {column.distinct} different integers"
    assert column.smallest is not None
    assert column.largest is not None
    if max(-column.smallest, column.largest) >= MAX_AMOUNT:
        return "id", f"integers too large for an amount; {distinct_ids}"
    return (
        "number",
        f"integers from {column.smallest:,.0f} to {column.largest:,.0f}; about {column.distinct:,} distinct",
    )


def _infer_numbers(column: ColumnProfile, distinct_ids: str) -> tuple[FieldType | None, str]:
    if column.zero_padded:
        return "id", f"numbers with leading zeros; {distinct_ids}"
    if _is_named_id(column.name):
        return "id", f"numbers in a column named as an id; {distinct_ids}"
    largest = max(abs(column.smallest or 0), abs(column.largest or 0))
    if largest >= MAX_EXACT_FLOAT and not is_float(column.duckdb_type):
        return "id", f"numbers too large for an amount; {distinct_ids}"
    if is_text(column.duckdb_type) and column.distinct <= MAX_CATEGORIES:
        return "id", f"only {column.distinct} different numbers"
    return "number", f"numbers from {column.smallest:g} to {column.largest:g}"


def _is_named_id(name: str) -> bool:
    """Return whether a column name contains the word id, for example item_id, ID7 or itemId."""
    words = name.lower().replace("-", "_").split("_")
    return any(re.fullmatch(r"id\d*", word) for word in words) or name.endswith(("Id", "ID"))


def job_field(
    column: ColumnProfile, field_type: FieldType, declaration: RecipeField, ids: int, min_count: int
) -> dict[str, Any]:
    """Return a field of the job file: its declaration, completed with values that are inferred from the column.

    `ids` is the number of distinct ids without the rare ids.
    """
    keys = declaration.model_dump(exclude_none=True, exclude={"separator", "missing", "column"})
    if field_type == "number":
        return {"type": field_type} | keys
    values = column.numbers if field_type == "id_list" else column.present
    kind: Literal["int", "string"] = "int" if 0 < column.integers == values else "string"
    field: dict[str, Any] = {"type": field_type, "num_embeddings": suggested_num_embeddings(ids), "values": kind}
    field |= {"min_count": min_count} if min_count > 1 else {}
    return field | keys


def suggested_num_embeddings(ids: int) -> int:
    """Return num_embeddings for a table, rounded up to two digits; most distinct ids then do not share a row."""
    rows = max(MIN_NUM_EMBEDDINGS, 2 * ids, *(min(each * ids, maximum) for each, maximum in ROWS_PER_ID))
    step = 10 ** max(math.floor(math.log10(rows)) - 1, 0)
    return math.ceil(rows / step) * step


def collision_share(ids: int, rows: int) -> float:
    """Return the fraction of ids that collide with another id: 1 - exp(-ids / rows) for random hashes."""
    return abs(math.expm1(-ids / rows))


def separator_of(column: ColumnProfile, declaration: RecipeField) -> str:
    """Return the separator of the ids in a text column: declared, else detected, else the first of SEPARATORS."""
    return declaration.separator or column.separator or SEPARATORS[0]
