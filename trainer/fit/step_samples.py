"""The samples of one step of a run's training, as they are in its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import new_parquet_file
from asymdiffrec.datasets.reader import make_epoch
from asymdiffrec.datasets.shards import Shards, open_shards
from asymdiffrec.trainer.job import total_steps
from asymdiffrec.trainer.run import Run


def write_samples(run: Run, step: int, out: Path) -> int:
    """Write the samples that step `step` (the first is 1) learns from to the Parquet file `out`, in the batch's order:
    their file, the number of their row in it, and the columns that the job reads. Returns their number.

    Raises InputError where there is no such step, where the data are not those of the run, or where `out` exists.
    """
    job = run.job()
    schema, shards = job.to_schema(run.statistics()), open_shards(job.location("train"), run.training_files())
    settings = job.train
    per_epoch = make_epoch(schema, shards, settings.seed, settings.batch_size).steps
    steps = total_steps(job, per_epoch)
    if not 0 < step <= steps:
        raise InputError(f"step {step}: the run's steps are 1 to {steps}")
    number, place = divmod(step - 1, per_epoch)
    epoch = make_epoch(schema, shards, settings.seed, settings.batch_size, number)
    table = _rows(shards, epoch.batch_row_numbers(place), schema.columns(labelled=True))
    with new_parquet_file(out, table.schema) as writer:
        writer.write_table(table)
    return int(table.num_rows)


def _rows(shards: Shards, numbers: np.ndarray, columns: list[str]) -> pa.Table:
    """The rows of these numbers in the split, with `file` and `row` before their columns."""
    ends = np.cumsum(shards.sizes)
    groups = np.searchsorted(ends, numbers, side="right")
    parts, places = [], []
    for group in np.unique(groups).tolist():
        own = np.flatnonzero(groups == group)
        rows = numbers[own].astype(np.int64) - (ends[group] - shards.sizes[group])
        file = shards.row_groups[group].file
        before = sum(other.rows for other in shards.row_groups[:group] if other.file == file)
        kinds = pa.schema([shards.schemas[file].field(column) for column in columns])
        part = shards.read(group, columns).select(columns).take(rows).cast(kinds)
        names = pa.array([shards.files[file]] * len(own))
        parts.append(part.add_column(0, "row", pa.array(rows + before)).add_column(0, "file", names))
        places.append(own)
    return pa.concat_tables(parts, promote_options="permissive").take(np.argsort(np.concatenate(places)))
