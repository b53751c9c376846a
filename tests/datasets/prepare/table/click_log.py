"""A small click log as raw files, and readers for the data set that `prepare table` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from asymdiffrec.datasets.prepare.table.recipe import Recipe

ROWS = 200
SPLITS = ("train", "valid", "test")


def raw(rows: int = ROWS, start: int = 0) -> pa.Table:
    """Return a small click log; the column `row` numbers its rows from `start`."""
    number = np.arange(start, start + rows)
    return pa.table(
        {
            "row": number,
            "user_id": number % 17 + 1000,
            "city": pa.array([None if k % 10 == 0 else f"city {k % 7}" for k in number.tolist()]),
            "price": pa.array(number / 8, mask=number % 4 == 1),
            "tags": ["|".join(f"t{(k + j) % 5}" for j in range(k % 4)) for k in number.tolist()],
            "time": number // 2,
            "click": number % 2,
        }
    )


def recipe(files: Path | str | list[str], **settings: Any) -> Recipe:
    """Return a recipe for the click log with some settings."""
    names = [str(file) for file in files] if isinstance(files, list) else str(files)
    settings = {"fields": {"row": {"type": "id"}}, "infer": True} | settings
    return Recipe.model_validate({"input": {"files": names} | settings.pop("input", {})} | settings)


def csv(folder: Path, table: pa.Table | None = None, name: str = "log.csv") -> Path:
    """Write a table, by default the click log, as CSV and return the file."""
    pacsv.write_csv(raw() if table is None else table, folder / name)
    return folder / name


def written(out: Path) -> dict[str, pa.Table]:
    """Return the rows of each split."""
    return {split: pq.read_table(out / split) for split in SPLITS}


def rows_of(out: Path) -> dict[str, list[int]]:
    """Return the row numbers in each split."""
    return {split: table["row"].to_pylist() for split, table in written(out).items()}
