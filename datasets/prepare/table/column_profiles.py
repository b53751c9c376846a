"""Profile the columns of a raw table: counts, ranges and list separators. One query, plus one for each list column."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from asymdiffrec.datasets.prepare.table.conversions import list_elements
from asymdiffrec.datasets.prepare.table.database import Database
from asymdiffrec.datasets.prepare.table.duckdb_types import is_id_list, is_list, is_number, is_text
from asymdiffrec.datasets.prepare.table.sql import quote_name

SEPARATORS = ("|", ";")
"""Separators of ids in text that are detected without a declaration"""
MIN_SEPARATOR_SHARE = 0.1
"""Minimum share of the values of a text column that contain the separator, to treat the column as lists"""


@dataclass(frozen=True)
class ColumnProfile:
    """Counts and ranges of the values of a column. For lists of ids, counts of values are counts of ids."""

    name: str
    duckdb_type: str
    rows: int
    present: int
    """Number of rows in which the value is not missing"""
    distinct: int
    """Number of distinct values; an estimate with an error of a few percent"""
    integers: int
    """Number of values that are integers; in text, integers in canonical form"""
    numbers: int
    """Number of values that are numbers; for lists, the number of all ids"""
    smallest: float | None
    """Smallest number"""
    largest: float | None
    """Largest number"""
    length: float
    """Mean number of characters of a text, or of ids in a list"""
    zero_padded: int = 0
    """Number of texts that are numbers with leading zeros"""
    separator: str | None = None
    """Separator of the ids, if the column has lists as text"""


def profile_columns(
    database: Database,
    table: str,
    duckdb_types: Mapping[str, str],
    present: Mapping[str, str],
    missing: Mapping[str, Sequence[str]],
    list_separators: Mapping[str, str | None],
    single_value_columns: Collection[str],
) -> dict[str, ColumnProfile]:
    """Return a profile of each column of a table, by column name.

    duckdb_types: {column: its DuckDB type}.
    present: {column: SQL for its value}, see `present_value`.
    missing: {column: strings that mean missing}.
    list_separators: {column: separator} for columns that are declared as lists of ids; None: detect the separator.
    single_value_columns: the columns that are declared as single values, not lists.
    """
    parts = {name: _measures(present[name], duckdb_type) for name, duckdb_type in duckdb_types.items()}
    selected = ", ".join(measure for measures in parts.values() for measure in measures)
    ((rows, *figures),) = database.run("analysing the columns", f"SELECT count(*), {selected} FROM {quote_name(table)}")
    profiles = {}
    for name, duckdb_type in duckdb_types.items():
        width = len(parts[name])
        column_figures, figures = figures[:width], figures[width:]
        values, distinct, integers, numbers, smallest, largest, length, zero_padded, *separated = column_figures
        profile = ColumnProfile(
            name, duckdb_type, rows, values, distinct, integers, numbers, smallest, largest, length or 0.0, zero_padded
        )
        separator = list_separators.get(name) or (_frequent_separator(separated, values) if separated else None)
        if name in list_separators and is_text(duckdb_type):
            separator = separator or SEPARATORS[0]
        if is_id_list(duckdb_type) or (separator and name not in single_value_columns):
            as_list = _list_profile(database, table, profile, present[name], separator, missing[name])
            # In a column of lists the parts repeat, so it has fewer distinct parts than distinct texts.
            if is_id_list(duckdb_type) or name in list_separators or as_list.distinct < distinct:
                profile = as_list
        profiles[name] = profile
    return profiles


def _measures(value: str, duckdb_type: str) -> list[str]:
    """Return SQL for the values of a `ColumnProfile`, in its order, and for the counts of separators."""
    if is_list(duckdb_type):
        return [f"count(*) FILTER (len({value}) > 0)", "0", "0", "0", "NULL", "NULL", "0", "0"]
    number = f"try_cast({value} AS DOUBLE)" if is_text(duckdb_type) or is_number(duckdb_type) else "NULL::DOUBLE"
    whole = f"{number} = floor({number})"
    if is_text(duckdb_type):
        whole = f"try_cast({value} AS BIGINT)::VARCHAR = {value}"
    measures = [
        f"count({value})",
        f"approx_count_distinct({value})",
        f"count(*) FILTER ({whole})",
        f"count({number})",
        f"min({number})",
        f"max({number})",
        f"avg(length({value}))" if is_text(duckdb_type) else "0",
        f"count(*) FILTER (regexp_full_match({value}, '0[0-9]+'))" if is_text(duckdb_type) else "0",
    ]
    if is_text(duckdb_type):
        measures += [f"count(*) FILTER (contains({value}, '{separator}'))" for separator in SEPARATORS]
    return measures


def _frequent_separator(counts: Sequence[int], present: int) -> str | None:
    """Return the most frequent separator if at least MIN_SEPARATOR_SHARE of the values contain it."""
    rows, separator = max(zip(counts, SEPARATORS, strict=True))
    return separator if present and rows >= MIN_SEPARATOR_SHARE * present else None


def _list_profile(
    database: Database, table: str, profile: ColumnProfile, value: str, separator: str | None, missing: Sequence[str]
) -> ColumnProfile:
    """Return the profile of a column whose values are treated as lists of ids."""
    elements = list_elements(value, profile.duckdb_type, separator or SEPARATORS[0], missing)
    ((ids, distinct, integers),) = database.run(
        f"analysing the lists of {profile.name}",
        "SELECT count(x), approx_count_distinct(x), count(*) FILTER (try_cast(x AS BIGINT)::VARCHAR = x::VARCHAR) "
        f"FROM (SELECT unnest({elements}) AS x FROM {quote_name(table)})",
    )
    length = ids / max(profile.present, 1)
    return replace(profile, distinct=distinct, integers=integers, numbers=ids, length=length, separator=separator)
