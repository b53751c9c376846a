"""Prepare a data set from any table of text or Parquet files, with declared or inferred fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import require_absent, temporary_folder_for
from asymdiffrec.datasets.files.documents import validate
from asymdiffrec.datasets.prepare.progress import ProgressCallback, no_progress
from asymdiffrec.datasets.prepare.table.assign_splits import SPLITS, assign_splits
from asymdiffrec.datasets.prepare.table.conversions import present_value
from asymdiffrec.datasets.prepare.table.count_features import declare_count_features, with_count_features
from asymdiffrec.datasets.prepare.table.database import MAX_EXAMPLES, Database
from asymdiffrec.datasets.prepare.table.input_files import FILE_COLUMN
from asymdiffrec.datasets.prepare.table.layout import SampleLayout, plan_layout
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.prepare.table.sql import literal, quote_name
from asymdiffrec.datasets.prepare.write_dataset import write_dataset
from asymdiffrec.datasets.schema import FieldsConfig

BLOCK_ROWS = 65_536
"""Number of rows that are fetched from the database at a time"""
MIN_EPOCH_STEPS = 100
"""The suggested batch size is halved until an epoch has this number of steps"""


def prepare_table(
    out: Path,
    recipe: Recipe,
    *,
    progress: ProgressCallback = no_progress,
    on_layout: Callable[[SampleLayout], None] = lambda layout: None,
    write: bool = True,
) -> dict[str, Any]:
    """Write the table of a recipe as a data set to the new folder `out` and return its profile.

    on_layout: called with the decisions on the columns before anything is written.
    write: if False, stop after `on_layout` and return an empty profile.

    In addition to the entries of `compute_statistics`, the profile has two entries: `columns`, the decision on each
    column with its reason, and `bad_rows`, the skipped rows by reason, with examples.

    The table is loaded into a temporary DuckDB database in the parent folder of `out`; memory does not grow with the
    number of rows. The random split and the order of the rows are functions of the seed and the row number, so equal
    files give equal data sets. The result of a query is sorted first, because SQL does not define the order of rows.

    Raises InputError if `out` exists, a file cannot be read, or the columns of the files do not match each other or the
    recipe. The first wrong row raises InputError too, with file, line or row, and column, unless the recipe skips wrong
    rows.
    """
    require_absent(out)
    with temporary_folder_for(out) as folder, Database(folder, progress) as database:
        table = _load_samples(database, recipe)
        layout = plan_layout(database, table, recipe)
        declare_count_features(layout, recipe)
        on_layout(layout)
        _require_trainable(layout)
        if not write:
            return {}
        bad_rows, valid_row = _find_bad_rows(database, layout, skip=recipe.bad_rows == "skip")
        split_sql, counts = assign_splits(database, layout, recipe, valid_row)
        train = {"batch_size": _batch_size(counts["train"])} | recipe.train
        job = {"name": recipe.name, "data": layout.data, "fields": layout.fields, "train": train}
        source = with_count_features(database, layout, recipe, split_sql, valid_row)
        splits = {
            split: _read_samples(database, layout, recipe, source, f"{valid_row} AND {split_sql} = {literal(split)}")
            for split in SPLITS
        }
        columns = [asdict(choice) for choice in layout.choices]
        return write_dataset(
            out,
            splits,
            job,
            profile={"columns": columns, "bad_rows": database.skipped_lines + bad_rows},
            rows_per_file=recipe.output.rows_per_file,
            rows_per_group=recipe.output.rows_per_group,
            rows=sum(counts.values()),
            progress=progress,
        )


def _load_samples(database: Database, recipe: Recipe) -> str:
    """Load the input files, run the query of the recipe, if any, and return the name of the table with the samples."""
    skip = recipe.bad_rows == "skip"
    if not recipe.query:
        database.load("input", recipe.input, recipe.split.files, skip)
        return "input"
    for name, table in {"input": recipe.input, **recipe.other_tables}.items():
        database.load(f"raw {name}", table, {}, skip)
        columns = database.column_types(f"raw {name}")
        values = (
            f"{present_value(column, duckdb_type, recipe.missing)} AS {quote_name(column)}"
            for column, duckdb_type in columns.items()
        )
        view = f"CREATE VIEW {quote_name(name)} AS SELECT {', '.join(values)} FROM {quote_name(f'raw {name}')}"
        database.run("reading", view)
    query = recipe.query.strip().rstrip(";")
    database.run("query", f"SET VARIABLE seed = {recipe.seed}")
    database.run("query", f"CREATE TABLE samples AS SELECT * FROM (\n{query}\n) ORDER BY ALL")
    return "samples"


def _require_trainable(layout: SampleLayout) -> None:
    """Raise InputError if the fields do not make a valid job."""
    if not layout.fields:
        raise InputError("no column became a field; declare fields with --id, --number or --list")
    if all(field["type"] == "number" for field in layout.fields.values()):
        raise InputError("no column became an id, and a model needs at least one; declare one with --id or --list")
    validate(FieldsConfig, {"data": layout.data, "fields": layout.fields}, "the recipe")


def _find_bad_rows(database: Database, layout: SampleLayout, skip: bool) -> tuple[list[dict[str, Any]], str]:
    """Return the wrong rows by reason, with examples, and an SQL condition for the valid rows.

    If `skip` is false, the first wrong row raises InputError.
    """
    checks = {name: c.invalid for name, c in layout.conversions.items() if c.invalid != "false"}
    if not checks:
        return [], "true"
    counted = ", ".join(f"count(*) FILTER ({condition})" for condition in checks.values())
    (counts,) = database.run("checking the rows", f"SELECT {counted} FROM {quote_name(layout.table)}")
    bad_rows = []
    for (name, condition), count in zip(checks.items(), counts, strict=True):
        if not count:
            continue
        allowed = layout.conversions[name].allowed
        examples = _examples(database, layout, name, condition, MAX_EXAMPLES if skip else 1)
        if not skip:
            rows = f"{count:,} rows are wrong" if count > 1 else "one row is wrong"
            raise InputError(f"{examples[0]}; allowed is {allowed} ({rows}; --bad-rows skip leaves wrong rows out)")
        why = f"column {layout.sources[name]}: not {allowed}"
        bad_rows.append({"why": why, "rows": count, "examples": examples})
    valid_row = " AND ".join(f"NOT coalesce({checks[name]}, false)" for name in checks) if bad_rows else "true"
    return bad_rows, valid_row


def _examples(database: Database, layout: SampleLayout, name: str, condition: str, limit: int) -> list[str]:
    """Return the location and the value of the first rows that meet a condition on a column."""
    column, table = quote_name(layout.sources[name]), quote_name(layout.table)
    has_files = layout.table == "input"
    file = FILE_COLUMN if has_files else "NULL"
    rows = database.run(
        "checking the rows",
        f"SELECT rowid, {file}, {column}::VARCHAR FROM {table} WHERE {condition} ORDER BY rowid LIMIT {limit}",
    )
    examples = []
    for row, source, value in rows:
        location = f"row {row + 1} of the query's result"
        if has_files:
            before = f"SELECT count(*) FROM {table} WHERE {FILE_COLUMN} = {literal(source)} AND rowid < {row}"
            number = database.run("checking the rows", before)[0][0] + 1
            readable = " of the readable rows" if database.skipped_lines else ""
            location = f"{database.files.display_name(source)}, row {number}{readable}"
        found = "nothing" if value is None else repr(value)
        examples.append(f"{location}, column {layout.sources[name]}: found {found}")
    return examples


def _batch_size(rows: int) -> int:
    """Return the suggested batch size for a number of training rows, a multiple of the 32 lanes.

    It is 1024, halved until an epoch has MIN_EPOCH_STEPS steps, but at least 64. For fewer than 64 rows it is 32.
    """
    if rows < 64:
        return 32
    return 64 << min(4, max(0, (rows // MIN_EPOCH_STEPS // 64).bit_length() - 1))


def _read_samples(
    database: Database, layout: SampleLayout, recipe: Recipe, source: str, where: str
) -> Iterator[pa.Table]:
    """Yield the samples of a split, in random order if `output.shuffle` of the recipe is true, else in input order."""
    selected = ", ".join(f"{conversion.sql} AS {quote_name(name)}" for name, conversion in layout.conversions.items())
    order = f" ORDER BY hash(rowid, {recipe.seed}, 'order')" if recipe.output.shuffle else ""
    return database.stream(f"SELECT {selected} FROM {source} WHERE {where}{order}", BLOCK_ROWS)
