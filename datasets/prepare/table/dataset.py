"""Any table to a data set: text or Parquet, its fields declared or found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import require_absent, temporary_folder_for
from asymdiffrec.datasets.files.documents import validate
from asymdiffrec.datasets.prepare.output import write_dataset
from asymdiffrec.datasets.prepare.progress import Progress, silent
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.prepare.table.samples import SampleLayout, layout_of
from asymdiffrec.datasets.prepare.table.sources import FILE
from asymdiffrec.datasets.prepare.table.splits import SPLITS, split_rows
from asymdiffrec.datasets.prepare.table.sql import literal, quoted
from asymdiffrec.datasets.prepare.table.statistics import declare_statistics, statistics_of
from asymdiffrec.datasets.prepare.table.store import EXAMPLES, Store
from asymdiffrec.datasets.prepare.table.values import present
from asymdiffrec.datasets.schema import FieldsConfig

BLOCK = 65_536
"""Rows that are taken from the database at once"""
STEPS = 100
"""Batches of an epoch, at least, that the batch size of the job leaves"""


def prepare_table(
    out: Path,
    recipe: Recipe,
    *,
    progress: Progress = silent,
    tell: Callable[[SampleLayout], None] = lambda layout: None,
    write: bool = True,
) -> dict[str, Any]:
    """Write the table of a recipe as a data set to the new folder `out`; gives its profile.

    `tell` is called with what was found out about the columns before anything is written; without `write` that is all,
    and the profile is empty. Beside what `compute_statistics` finds the profile has `columns`, what became of each
    column and why, and `bad_rows`, the rows that were left out, by reason, with examples.

    The table is kept in a database beside `out` while this works, in memory that does not grow with it. The split and
    the order of the rows are drawn from (seed, place of the row), so that the same files give the same data set. The
    rows of a query are first put in order, since SQL has none.
    Raises InputError where `out` exists, files cannot be read or do not fit each other or the recipe, and, unless the
    recipe says to skip them, at the first row that is wrong, with its file, line or row, and column.
    """
    require_absent(out)
    with temporary_folder_for(out) as folder, Store(folder, progress) as store:
        table = _loaded(store, recipe)
        layout = layout_of(store, table, recipe)
        declare_statistics(layout, recipe)
        tell(layout)
        _require_sound(layout)
        if not write:
            return {}
        bad, good = _sound_rows(store, layout, skip=recipe.bad_rows == "skip")
        placed, counts = split_rows(store, layout, recipe, good)
        train = {"batch_size": _batch_size(counts["train"])} | recipe.train
        job = {"name": recipe.name, "data": layout.data, "fields": layout.fields, "train": train}
        source = statistics_of(store, layout, recipe, placed, good)
        splits = {
            split: _rows(store, layout, recipe, source, f"{good} AND {placed} = {literal(split)}") for split in SPLITS
        }
        columns = [choice.__dict__ for choice in layout.choices]
        return write_dataset(
            out,
            splits,
            job,
            profile={"columns": columns, "bad_rows": store.refused + bad},
            rows_per_file=recipe.output.rows_per_file,
            rows_per_group=recipe.output.rows_per_group,
            rows=sum(counts.values()),
            progress=progress,
        )


def _loaded(store: Store, recipe: Recipe) -> str:
    """The table with the samples."""
    skip = recipe.bad_rows == "skip"
    if not recipe.query:
        store.load("input", recipe.input, recipe.split.files, skip)
        return "input"
    for name, table in {"input": recipe.input, **recipe.others}.items():
        store.load(f"raw {name}", table, {}, skip)
        columns = store.types(f"raw {name}")
        cleaned = (f"{present(column, kind, recipe.missing)} AS {quoted(column)}" for column, kind in columns.items())
        view = f"CREATE VIEW {quoted(name)} AS SELECT {', '.join(cleaned)} FROM {quoted(f'raw {name}')}"
        store.run("reading", view)
    query = recipe.query.strip().rstrip(";")
    store.run("query", f"SET VARIABLE seed = {recipe.seed}")
    store.run("query", f"CREATE TABLE samples AS SELECT * FROM (\n{query}\n) ORDER BY ALL")
    return "samples"


def _require_sound(layout: SampleLayout) -> None:
    """Raise InputError where no job can be made of the fields."""
    if not layout.fields:
        raise InputError("none of the columns became a field; say with --id, --number or --list which ones are")
    if all(field["type"] == "number" for field in layout.fields.values()):
        raise InputError(
            "none of the columns became an id, and a model needs one; say with --id or --list which ones are"
        )
    validate(FieldsConfig, {"data": layout.data, "fields": layout.fields}, "the recipe")


def _sound_rows(store: Store, layout: SampleLayout, skip: bool) -> tuple[list[dict[str, Any]], str]:
    """The rows that are wrong, by reason, and a condition that holds for the others."""
    wrong = {name: value.wrong for name, value in layout.values.items() if value.wrong != "false"}
    if not wrong:
        return [], "true"
    counted = ", ".join(f"count(*) FILTER ({condition})" for condition in wrong.values())
    (counts,) = store.run("checking the rows", f"SELECT {counted} FROM {quoted(layout.table)}")
    bad = []
    for (name, condition), count in zip(wrong.items(), counts, strict=True):
        if count:
            what = f"column {layout.sources[name]}"
            allowed = layout.values[name].allowed
            examples = _examples(store, layout, name, condition, EXAMPLES if skip else 1)
            if not skip:
                such = f"{count:,} such rows" if count > 1 else "one such row"
                raise InputError(f"{examples[0]}; allowed is {allowed} ({such}; --bad-rows skip leaves them out)")
            bad.append({"why": f"{what}: not {allowed}", "rows": count, "examples": examples})
    return bad, " AND ".join(f"NOT coalesce({wrong[name]}, false)" for name in wrong) if bad else "true"


def _examples(store: Store, layout: SampleLayout, name: str, condition: str, most: int) -> list[str]:
    """Where the first rows are that a condition holds for, and what stands there."""
    column, table = quoted(layout.sources[name]), quoted(layout.table)
    from_files = layout.table == "input"
    file = FILE if from_files else "NULL"
    found = store.run(
        "checking the rows",
        f"SELECT rowid, {file}, {column}::VARCHAR FROM {table} WHERE {condition} ORDER BY rowid LIMIT {most}",
    )
    examples = []
    for row, source, value in found:
        place = f"row {row + 1} of the query's result"
        if from_files:
            before = f"SELECT count(*) FROM {table} WHERE {FILE} = {literal(source)} AND rowid < {row}"
            of = " of those that could be read" if store.refused else ""
            place = f"{store.sources.shown(source)}, row {store.run('checking the rows', before)[0][0] + 1}{of}"
        examples.append(f"{place}, column {layout.sources[name]}: found {'nothing' if value is None else repr(value)}")
    return examples


def _batch_size(rows: int) -> int:
    """1024, or half of it, or a quarter and so on where that makes few steps an epoch; a multiple of the 32 lanes."""
    if rows < 64:
        return 32
    return 64 << min(4, max(0, (rows // STEPS // 64).bit_length() - 1))


def _rows(store: Store, layout: SampleLayout, recipe: Recipe, source: str, where: str) -> Iterator[pa.Table]:
    """The samples of a split, in a drawn order where the recipe wants that, else as they stand."""
    selected = ", ".join(f"{value.sql} AS {quoted(name)}" for name, value in layout.values.items())
    order = f" ORDER BY hash(rowid, {recipe.seed}, 'order')" if recipe.output.shuffle else ""
    return store.stream(f"SELECT {selected} FROM {source} WHERE {where}{order}", BLOCK)
