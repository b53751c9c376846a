"""Assign the rows of a table to the splits train, valid and test."""

from __future__ import annotations

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.database import SPLIT_COLUMN, Database
from asymdiffrec.datasets.prepare.table.layout import SampleLayout
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.prepare.table.sql import literal, quote_name

SPLITS = ("train", "valid", "test")


def assign_splits(
    database: Database, layout: SampleLayout, recipe: Recipe, valid_row: str
) -> tuple[str, dict[str, int]]:
    """Return SQL for the split of a row, and the number of rows in each split.

    Rows that do not meet the SQL condition `valid_row` are ignored. Raises InputError if a split has no rows, if the
    split column contains another value, or if all training rows have the same label.
    """
    split = _split_sql(database, layout, recipe, valid_row)
    selected = f"{split} AS split, count(*), sum({layout.conversions['label'].sql})"
    results = database.run(
        "splitting", f"SELECT {selected} FROM {quote_name(layout.table)} WHERE {valid_row} GROUP BY 1"
    )
    counts = {name or "nothing": rows for name, rows, _ in results}
    unknown = sorted(counts.keys() - set(SPLITS))
    if unknown:
        raise InputError(f"column {recipe.split.column}: found {unknown[0]}; allowed are train, valid and test")
    for name in SPLITS:
        if not counts.get(name):
            raise InputError(f"the {name} split has no rows; provide more data or a larger share")
    ((rows, positive),) = [(rows, positive) for name, rows, positive in results if name == "train"]
    if positive in (0, rows):
        raise InputError(
            f"every label of the train split is {positive and 1}; training needs both 0 and 1 (--positive and "
            "--at-least define which values mean 1)"
        )
    return split, {name: counts[name] for name in SPLITS}


def _split_sql(database: Database, layout: SampleLayout, recipe: Recipe, valid_row: str) -> str:
    """Return SQL for the split of a row, according to the recipe: column, separate files, random, time or order."""
    if layout.split:
        return f"coalesce({layout.split}, 'nothing')"
    shares = {name: getattr(recipe.split, name) for name in SPLITS[1:] if name not in recipe.split.files}
    by_share = "'train'"
    if recipe.split.by == "random":
        uniform = f"hash(rowid, {recipe.seed}, 'split')::DOUBLE / 18446744073709551616.0"
        valid, test = shares.get("valid", 0.0), shares.get("test", 0.0)
        cases = f"WHEN {uniform} < {test} THEN 'test' WHEN {uniform} < {test + valid} THEN 'valid'"
        by_share = f"CASE {cases} ELSE 'train' END"
    elif shares:
        time = "rowid" if recipe.split.by == "order" or layout.time is None else layout.time.sql
        has_no_file = f"{_by_file(recipe, 'NULL')} IS NULL"
        by_share = _latest_rows(database, layout, time, shares, f"{valid_row} AND {has_no_file}")
    return _by_file(recipe, by_share)


def _by_file(recipe: Recipe, otherwise: str) -> str:
    """Return SQL for the split of a row: valid or test for rows of their separate files, `otherwise` for other rows."""
    return f"coalesce({SPLIT_COLUMN}, {otherwise})" if recipe.split.files else otherwise


def _latest_rows(database: Database, layout: SampleLayout, time: str, shares: dict[str, float], where: str) -> str:
    """Return SQL that makes the latest rows test rows and the rows before them validation rows.

    Rows with the same time are in the same split.
    """
    test, both = shares.get("test", 0.0), sum(shares.values())
    borders = database.run(
        "splitting",
        f"WITH moments AS "
        f"(SELECT {time} AS t, count(*) AS n FROM {quote_name(layout.table)} WHERE {where} GROUP BY 1), "
        "sums AS (SELECT t, sum(n) OVER (ORDER BY t) AS until, sum(n) OVER () AS total FROM moments) "
        f"SELECT min(t) FILTER (until > {1 - both} * total)::VARCHAR, "
        f"min(t) FILTER (until > {1 - test} * total)::VARCHAR, typeof(min(t)) FROM sums",
    )
    ((first_valid, first_test, duckdb_type),) = borders
    cases = ""
    if test and first_test is not None:
        cases += f"WHEN {time} >= {literal(first_test)}::{duckdb_type} THEN 'test' "
    if "valid" in shares and first_valid is not None:
        cases += f"WHEN {time} >= {literal(first_valid)}::{duckdb_type} THEN 'valid' "
    return f"CASE {cases}ELSE 'train' END" if cases else "'train'"
