"""Which rows are for training, validation and test."""

from __future__ import annotations

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.prepare.table.samples import SampleLayout
from asymdiffrec.datasets.prepare.table.sql import literal, quoted
from asymdiffrec.datasets.prepare.table.store import SPLIT, Store

SPLITS = ("train", "valid", "test")


def split_rows(store: Store, layout: SampleLayout, recipe: Recipe, good: str) -> tuple[str, dict[str, int]]:
    """SQL for the split of a row, and the number of rows in each; of the rows that `good` holds for.

    Raises InputError where a split has no row, or a row names another one.
    """
    placed = _placed(store, layout, recipe, good)
    counted = f"{placed} AS split, count(*), sum({layout.values['label'].sql})"
    found = store.run("splitting", f"SELECT {counted} FROM {quoted(layout.table)} WHERE {good} GROUP BY 1")
    counts = {split or "nothing": rows for split, rows, _ in found}
    other = sorted(counts.keys() - set(SPLITS))
    if other:
        raise InputError(f"split.column {recipe.split.column}: found {other[0]}; allowed are train, valid and test")
    for split in SPLITS:
        if not counts.get(split):
            raise InputError(f"the {split} split has no rows; give more data, or another share")
    ((rows, positive),) = [(rows, positive) for split, rows, positive in found if split == "train"]
    if positive in (0, rows):
        raise InputError(
            f"every label of the train split is {positive and 1}; training needs both (--positive and --at-least say "
            "which values are 1)"
        )
    return placed, {split: counts[split] for split in SPLITS}


def _placed(store: Store, layout: SampleLayout, recipe: Recipe, good: str) -> str:
    if layout.split:
        return f"coalesce({layout.split}, 'nothing')"
    shares = {split: getattr(recipe.split, split) for split in SPLITS[1:] if split not in recipe.split.files}
    drawn = "'train'"
    if recipe.split.by == "random":
        uniform = f"hash(rowid, {recipe.seed}, 'split')::DOUBLE / 18446744073709551616.0"
        valid, test = shares.get("valid", 0.0), shares.get("test", 0.0)
        drawn = f"WHEN {uniform} < {test} THEN 'test' WHEN {uniform} < {test + valid} THEN 'valid'"
        drawn = f"CASE {drawn} ELSE 'train' END"
    elif shares:
        moment = "rowid" if recipe.split.by == "order" or layout.moment is None else layout.moment.sql
        drawn = _latest(store, layout, moment, shares, f"{good} AND {_own(recipe, 'NULL')} IS NULL")
    return _own(recipe, drawn)


def _own(recipe: Recipe, otherwise: str) -> str:
    """The split of rows from files that are one, and something for others."""
    return f"coalesce({SPLIT}, {otherwise})" if recipe.split.files else otherwise


def _latest(store: Store, layout: SampleLayout, moment: str, shares: dict[str, float], where: str) -> str:
    """The latest rows are test, the ones before them valid; rows of one moment stay together."""
    test, both = shares.get("test", 0.0), sum(shares.values())
    borders = store.run(
        "splitting",
        f"WITH moments AS "
        f"(SELECT {moment} AS t, count(*) AS n FROM {quoted(layout.table)} WHERE {where} GROUP BY 1), "
        "sums AS (SELECT t, sum(n) OVER (ORDER BY t) AS until, sum(n) OVER () AS total FROM moments) "
        f"SELECT min(t) FILTER (until > {1 - both} * total)::VARCHAR, "
        f"min(t) FILTER (until > {1 - test} * total)::VARCHAR, typeof(min(t)) FROM sums",
    )
    ((first, second, kind),) = borders
    cases = f"WHEN {moment} >= {literal(second)}::{kind} THEN 'test' " if test and second is not None else ""
    if "valid" in shares and first is not None:
        cases += f"WHEN {moment} >= {literal(first)}::{kind} THEN 'valid' "
    return f"CASE {cases}ELSE 'train' END" if cases else "'train'"
