"""Add count features: the number of training rows with an id, and the share of label 1 among them, as numeric fields.

The features of a row do not depend on the label of the row. If the data have a time, only earlier training rows are
counted. Otherwise, only the training rows of other folds are counted for a training row, and all training rows for
other rows. A feature is missing if the id is missing.
"""

from __future__ import annotations

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.conversions import Conversion
from asymdiffrec.datasets.prepare.table.database import Database
from asymdiffrec.datasets.prepare.table.infer_fields import ColumnChoice
from asymdiffrec.datasets.prepare.table.layout import SampleLayout
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.prepare.table.sql import quote_name

FOLDS = 5
PRIOR_ROWS = 10
"""A rate is smoothed as if this number of rows with the mean label were added"""
ROW_COLUMN = "__asymdiffrec_row"
TABLE = "__asymdiffrec_statistics"


def declare_count_features(layout: SampleLayout, recipe: Recipe) -> None:
    """Add the fields of the recipe's count features to a layout, as columns of TABLE.

    Raises InputError if a feature names a field that is not of type id, or a column already has the feature's name.
    """
    for text in recipe.count_features:
        names = text.split("*")
        for name in names:
            if layout.fields.get(name, {}).get("type") != "id":
                id_fields = ", ".join(name for name, field in layout.fields.items() if field["type"] == "id")
                raise InputError(f"count_features: {name} is not a field of type id; the id fields are {id_fields}")
        groups = {layout.fields[name].get("group") for name in names}
        group = {"group": next(iter(groups))} if len(groups) == 1 and None not in groups else {}
        counted = "earlier training rows" if layout.time else "training rows of other folds"
        ids = " and ".join(names)
        for suffix, settings, reason in (
            ("count", {"transform": "log1p"}, f"number of {counted} with the same {ids}"),
            ("rate", {}, f"share of label 1 among these rows, smoothed with {PRIOR_ROWS} rows"),
        ):
            name = f"{'_'.join(names)}_{suffix}"
            if name in layout.conversions or name in layout.sources.values():
                raise InputError(f"count_features: {text} adds a field {name}, but a column has this name; rename it")
            layout.add(name, layout.sources[names[0]], Conversion(quote_name(name)))
            layout.fields[name] = {"type": "number", **group, **settings}
            layout.choices.append(ColumnChoice(name, "number", reason))


def with_count_features(database: Database, layout: SampleLayout, recipe: Recipe, split: str, valid_row: str) -> str:
    """Compute the count features and return the SQL source of the samples: the table, joined with the features.

    `split` is SQL for the split of a row. Rows that do not meet the SQL condition `valid_row` are ignored.
    """
    table = quote_name(layout.table)
    if not recipe.count_features:
        return table
    keys = [[layout.conversions[name].sql for name in text.split("*")] for text in recipe.count_features]
    columns = [f"{split} = 'train' AS is_training", f"{layout.conversions['label'].sql} AS y"]
    columns += [f"hash(rowid, {recipe.seed}, 'fold') % {FOLDS} AS fold"]
    columns += [f"{layout.time.sql} AS t"] if layout.time else []
    columns += [f"{sql} AS k{index}_{part}" for index, key in enumerate(keys) for part, sql in enumerate(key)]
    rows = f"SELECT rowid AS {ROW_COLUMN}, {', '.join(columns)} FROM {table} WHERE {valid_row}"
    counts = [
        f"{_over_visible_rows(aggregate, index, len(key), bool(layout.time))} AS {name}{index}"
        for index, key in enumerate(keys)
        for name, aggregate in (("n", "count(*)"), ("p", "sum(y)"))
    ]
    mean_label = "(SELECT avg(y) FILTER (WHERE is_training) FROM counted)"
    features = [ROW_COLUMN]
    for index, (text, key) in enumerate(zip(recipe.count_features, keys, strict=True)):
        present = " AND ".join(f"k{index}_{part} IS NOT NULL" for part in range(len(key)))
        name = text.replace("*", "_")
        features.append(f"CASE WHEN {present} THEN n{index} END AS {quote_name(f'{name}_count')}")
        rate = f"(coalesce(p{index}, 0) + {PRIOR_ROWS} * {mean_label}) / (n{index} + {PRIOR_ROWS})"
        features.append(f"CASE WHEN {present} AND n{index} > 0 THEN {rate} END AS {quote_name(f'{name}_rate')}")
    query = f"WITH counted AS (SELECT *, {', '.join(counts)} FROM ({rows})) SELECT {', '.join(features)} FROM counted"
    database.run("computing count features", f"CREATE TABLE {TABLE} AS {query}")
    return f"{table} JOIN (SELECT * FROM {TABLE}) AS features ON features.{ROW_COLUMN} = {table}.rowid"


def _over_visible_rows(aggregate: str, index: int, parts: int, by_time: bool) -> str:
    """Return SQL for an aggregate over the training rows with the same key that are counted for a row."""
    over_training = f"{aggregate} FILTER (WHERE is_training)"
    key = ", ".join(f"k{index}_{part}" for part in range(parts))
    if by_time:
        frame = "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW EXCLUDE GROUP"
        return f"{over_training} OVER (PARTITION BY {key} ORDER BY t {frame})"
    same_fold = f"coalesce({over_training} OVER (PARTITION BY {key}, fold), 0)"
    all_folds = f"coalesce({over_training} OVER (PARTITION BY {key}), 0)"
    return f"{all_folds} - CASE WHEN is_training THEN {same_fold} ELSE 0 END"
