"""How often an id comes, and how often with a label of 1: numbers beside the id, and missing where it is.

They count training rows alone: where rows have a time, earlier ones; elsewhere, for a training row, those of the other
folds. So none knows its own label, nor one that was not known yet.
"""

from __future__ import annotations

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.infer import Choice
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.prepare.table.samples import SampleLayout
from asymdiffrec.datasets.prepare.table.sql import quoted
from asymdiffrec.datasets.prepare.table.store import Store
from asymdiffrec.datasets.prepare.table.values import Value

FOLDS = 5
PRIOR = 10
"""Rows with the mean label that a rate is smoothed by"""
ROW = "__asymdiffrec_row"
TABLE = "__asymdiffrec_statistics"


def declare_statistics(layout: SampleLayout, recipe: Recipe) -> None:
    """Add the fields of the recipe's statistics to a layout, as columns of TABLE.

    Raises InputError where they are not of fields of type id, or their names are taken.
    """
    for text in recipe.statistics:
        names = text.split("*")
        for name in names:
            if layout.fields.get(name, {}).get("type") != "id":
                known = ", ".join(name for name, field in layout.fields.items() if field["type"] == "id")
                raise InputError(f"statistics: {name} is no field of type id; there are {known}")
        groups = {layout.fields[name].get("group") for name in names}
        group = {"group": next(iter(groups))} if len(groups) == 1 and None not in groups else {}
        counted = "earlier training rows" if layout.moment else "training rows, out of fold"
        what = " and ".join(names)
        for ending, more, reason in (
            ("count", {"transform": "log1p"}, f"how many {counted} have its {what}"),
            ("rate", {}, f"the share of them with label 1, smoothed by {PRIOR} rows"),
        ):
            name = f"{'_'.join(names)}_{ending}"
            if name in layout.values or name in layout.sources.values():
                raise InputError(f"statistics: {text} makes a field {name}, but there is a column of that name")
            layout.add(name, layout.sources[names[0]], Value(quoted(name)))
            layout.fields[name] = {"type": "number", **group, **more}
            layout.choices.append(Choice(name, "number", reason))


def statistics_of(store: Store, layout: SampleLayout, recipe: Recipe, placed: str, good: str) -> str:
    """What the samples are selected from: the table, joined with its statistics where there are any.

    `placed` is SQL for the split of a row, and `good` holds for the rows that count.
    """
    table = quoted(layout.table)
    if not recipe.statistics:
        return table
    keys = [[layout.values[name].sql for name in text.split("*")] for text in recipe.statistics]
    columns = [f"{placed} = 'train' AS learns", f"{layout.values['label'].sql} AS y"]
    columns += [f"hash(rowid, {recipe.seed}, 'fold') % {FOLDS} AS fold"]
    columns += [f"{layout.moment.sql} AS t"] if layout.moment else []
    columns += [f"{sql} AS k{number}_{part}" for number, key in enumerate(keys) for part, sql in enumerate(key)]
    rows = f"SELECT rowid AS {ROW}, {', '.join(columns)} FROM {table} WHERE {good}"
    counts = [
        f"{_counted(what, number, len(key), bool(layout.moment))} AS {name}{number}"
        for number, key in enumerate(keys)
        for name, what in (("n", "count(*)"), ("p", "sum(y)"))
    ]
    rate = "(SELECT avg(y) FILTER (WHERE learns) FROM counted)"
    found = [ROW]
    for number, (text, key) in enumerate(zip(recipe.statistics, keys, strict=True)):
        there = " AND ".join(f"k{number}_{part} IS NOT NULL" for part in range(len(key)))
        name = text.replace("*", "_")
        found.append(f"CASE WHEN {there} THEN n{number} END AS {quoted(f'{name}_count')}")
        smoothed = f"(coalesce(p{number}, 0) + {PRIOR} * {rate}) / (n{number} + {PRIOR})"
        found.append(f"CASE WHEN {there} AND n{number} > 0 THEN {smoothed} END AS {quoted(f'{name}_rate')}")
    counting = f"WITH counted AS (SELECT *, {', '.join(counts)} FROM ({rows})) SELECT {', '.join(found)} FROM counted"
    store.run("counting statistics", f"CREATE TABLE {TABLE} AS {counting}")
    return f"{table} JOIN (SELECT * FROM {TABLE}) AS known ON known.{ROW} = {table}.rowid"


def _counted(what: str, number: int, parts: int, by_time: bool) -> str:
    """An aggregate over the training rows of a key that a row may know of."""
    learning = f"{what} FILTER (WHERE learns)"
    key = ", ".join(f"k{number}_{part}" for part in range(parts))
    if by_time:
        frame = "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP"
        return f"{learning} OVER (PARTITION BY {key} ORDER BY t {frame})"
    own = f"coalesce({learning} OVER (PARTITION BY {key}, fold), 0)"
    return f"coalesce({learning} OVER (PARTITION BY {key}), 0) - CASE WHEN learns THEN {own} ELSE 0 END"
