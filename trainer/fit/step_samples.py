"""Write the samples of one training step of a run, as they are in its data files."""

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
    """Write the samples of training step number `step` (1-based) to the Parquet file `out`, and return their number.

    The rows are in the order of the batch. The columns are `file`, `row` (number of the row in the file), and the
    columns that the job reads.
    Raises InputError if the run has no such step, its data have changed, or `out` exists.
    """
    job = run.job()
    schema, shards = job.to_schema(run.statistics()), open_shards(job.location("train"), run.training_files())
    settings = job.train
    steps_per_epoch = make_epoch(schema, shards, settings.seed, settings.batch_size).steps
    steps = total_steps(job, steps_per_epoch)
    if not 0 < step <= steps:
        raise InputError(f"step {step}: the run's steps are 1 to {steps}")
    epoch_number, batch = divmod(step - 1, steps_per_epoch)
    epoch = make_epoch(schema, shards, settings.seed, settings.batch_size, epoch_number)
    table = _read_rows(shards, epoch.batch_row_numbers(batch), schema.columns(labelled=True))
    with new_parquet_file(out, table.schema) as writer:
        writer.write_table(table)
    return int(table.num_rows)


def _read_rows(shards: Shards, numbers: np.ndarray, columns: list[str]) -> pa.Table:
    """Return the rows of the split with the given row numbers; `file` and `row` are the first columns."""
    ends = np.cumsum(shards.sizes)
    groups = np.searchsorted(ends, numbers, side="right")
    parts, positions = [], []
    for group in np.unique(groups).tolist():
        in_group = np.flatnonzero(groups == group)
        rows = numbers[in_group].astype(np.int64) - (ends[group] - shards.sizes[group])
        file = shards.row_groups[group].file
        rows_before = sum(other.rows for other in shards.row_groups[:group] if other.file == file)
        types = pa.schema([shards.schemas[file].field(column) for column in columns])
        part = shards.read(group, columns).select(columns).take(rows).cast(types)
        names = pa.array([shards.files[file]] * len(in_group))
        parts.append(part.add_column(0, "row", pa.array(rows + rows_before)).add_column(0, "file", names))
        positions.append(in_group)
    return pa.concat_tables(parts, promote_options="permissive").take(np.argsort(np.concatenate(positions)))
