"""What the columns of a raw table hold: one query over all rows, and one more for each list."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from asymdiffrec.datasets.prepare.table import values
from asymdiffrec.datasets.prepare.table.sql import quoted
from asymdiffrec.datasets.prepare.table.store import Store

SEPARATORS = ("|", ";")
"""What may stand between the ids of a list in text, where the user does not say"""


@dataclass(frozen=True)
class Column:
    """What a column of R rows holds."""

    name: str
    kind: str
    """DuckDB's type"""
    rows: int
    present: int
    """Rows with a value that is not missing"""
    distinct: int
    """Values, of a list ids; an estimate that is off by a few percent"""
    integers: int
    """Values, of a list ids, that are integers, in text in their usual form"""
    numbers: int
    """Values that are numbers"""
    least: float | None
    most: float | None
    length: float
    """Mean number of characters of text, of a list of ids"""
    padded: int = 0
    """Values of text that are numbers with leading zeros"""
    separator: str | None = None
    """What stands between the ids of text that is a list"""


def survey(
    store: Store,
    table: str,
    kinds: Mapping[str, str],
    values_of: Mapping[str, str],
    missing: Mapping[str, Sequence[str]],
    separators: Mapping[str, str | None],
    single: Collection[str],
) -> dict[str, Column]:
    """What the columns of a table hold, by their names.

    `kinds` are their DuckDB types; `values_of` is SQL for their values; `missing` the strings that mean that a column
    has no value; `separators` are what stands between the ids of the columns that are declared as lists of text, None
    where that has to be found out; `single` are the columns that are declared to be none.
    """
    parts = {name: _measures(values_of[name], kind) for name, kind in kinds.items()}
    selected = ", ".join(measure for measures in parts.values() for measure in measures)
    ((rows, *found),) = store.run("looking at the columns", f"SELECT count(*), {selected} FROM {quoted(table)}")
    columns = {}
    for name, kind in kinds.items():
        width = len(parts[name])
        (present, distinct, integers, numbers, least, most, length, padded, *separated), found = (
            found[:width],
            found[width:],
        )
        column = Column(name, kind, rows, present, distinct, integers, numbers, least, most, length or 0.0, padded)
        separator = separators.get(name) or (_separator(separated, present) if separated else None)
        if name in separators and values.is_text(kind):
            separator = separator or SEPARATORS[0]
        if values.is_id_list(kind) or (separator and name not in single):
            lists = _listed(store, table, column, values_of[name], separator, missing[name])
            # Text whose parts are as many as the wholes is no list of ids that come again.
            if values.is_id_list(kind) or name in separators or lists.distinct < distinct:
                column = lists
        columns[name] = column
    return columns


def _measures(value: str, kind: str) -> list[str]:
    """SQL for the figures of a column, in the order of `Column`."""
    if values.is_list(kind):
        return [f"count(*) FILTER (len({value}) > 0)", "0", "0", "0", "NULL", "NULL", "0", "0"]
    number = f"try_cast({value} AS DOUBLE)" if values.is_text(kind) or values.is_number(kind) else "NULL::DOUBLE"
    whole = f"{number} = floor({number})"
    if values.is_text(kind):
        whole = f"try_cast({value} AS BIGINT)::VARCHAR = {value}"
    measures = [
        f"count({value})",
        f"approx_count_distinct({value})",
        f"count(*) FILTER ({whole})",
        f"count({number})",
        f"min({number})",
        f"max({number})",
        f"avg(length({value}))" if values.is_text(kind) else "0",
        f"count(*) FILTER (regexp_full_match({value}, '0[0-9]+'))" if values.is_text(kind) else "0",
    ]
    if values.is_text(kind):
        measures += [f"count(*) FILTER (contains({value}, '{separator}'))" for separator in SEPARATORS]
    return measures


def _separator(separated: Sequence[int], present: int) -> str | None:
    """The one that at least a tenth of the values have."""
    rows, separator = max(zip(separated, SEPARATORS, strict=True))
    return separator if present and rows >= 0.1 * present else None


def _listed(
    store: Store, table: str, column: Column, value: str, separator: str | None, missing: Sequence[str]
) -> Column:
    """What a column holds as lists of ids."""
    found = values.tokens(value, column.kind, separator or SEPARATORS[0], missing)
    ((ids, distinct, integers),) = store.run(
        f"looking at the lists of {column.name}",
        "SELECT count(x), approx_count_distinct(x), count(*) FILTER (try_cast(x AS BIGINT)::VARCHAR = x::VARCHAR) "
        f"FROM (SELECT unnest({found}) AS x FROM {quoted(table)})",
    )
    length = ids / max(column.present, 1)
    # Lists count as numbers nowhere; `integers` is compared with `numbers`, the ids that there are.
    return replace(column, distinct=distinct, integers=integers, numbers=ids, length=length, separator=separator)
