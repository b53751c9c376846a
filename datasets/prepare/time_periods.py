"""Cut rows into consecutive periods and write data sets that train on earlier periods and test on the next period."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.write_dataset import write_dataset
from asymdiffrec.datasets.shards import Shards

VALIDATION_SHARE = 0.1
"""Share of the rows before the test period that are validation rows; the latest rows are chosen"""


def write_periods(out: Path, sources: Sequence[Shards], job: Mapping[str, Any], time: str, count: int) -> list[Path]:
    """Write `count` data sets to the folders out/1, out/2, ... and return their job files.

    The rows of all `sources`, in the order of the column `time`, are cut into `count + 1` periods with about the same
    number of rows. Data set k tests on period k + 1; its training and validation rows are all earlier rows. Rows with
    the same time are in the same split. Data sets that already exist are not written again.

    Raises InputError if a row has no time or the rows have too few different times.
    """
    times = [[_read_times(shards, group, time) for group in range(len(shards.row_groups))] for shards in sources]
    ordered = np.sort(np.concatenate([group_times for groups in times for group_times in groups]))
    ends = np.unique(ordered[np.linspace(0, len(ordered), count + 2)[1:].astype(np.int64) - 1])
    if len(ends) <= count:
        raise InputError(f"column {time}: too few different times for {count + 1} periods; choose fewer periods")
    job_files = []
    for number in range(1, count + 1):
        folder = out / str(number)
        before = ordered[: np.searchsorted(ordered, ends[number - 1], side="right")]
        before_last = before[before < before[-1]]
        if not len(before_last):
            raise InputError(
                f"column {time}: all rows before period {number} have the same time; training and validation need two "
                "different times"
            )
        last_training_time = min(before[int((1 - VALIDATION_SHARE) * len(before)) - 1], before_last[-1])
        bounds = {
            "train": (-np.inf, last_training_time),
            "valid": (last_training_time, ends[number - 1]),
            "test": (ends[number - 1], ends[number]),
        }
        if not folder.exists():
            splits = {name: _rows_between(sources, times, *pair) for name, pair in bounds.items()}
            write_dataset(folder, splits, {**job, "data": {**job["data"], "path": "."}})
        job_files.append(folder / "job.yaml")
    return job_files


def _read_times(shards: Shards, group: int, time: str) -> np.ndarray:
    """Return the times of a row group, [R] float64. Dates and timestamps become microseconds since 1970."""
    location = f"{shards.location_of(group)}, column {time}"
    column = shards.read(group, [time]).column(time)
    arrow_type = shards.schemas[0].field(time).type
    if pa.types.is_date(arrow_type) or pa.types.is_timestamp(arrow_type):
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    elif not (pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type)):
        raise InputError(f"{location}: found type {arrow_type}; allowed are date, timestamp and number")
    times: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy()
    if missing := int(np.isnan(times).sum()):
        raise InputError(f"{location}: {missing} rows have no time; every row needs a time")
    return times


def _rows_between(
    sources: Sequence[Shards], times: Sequence[Sequence[np.ndarray]], after: float, until: float
) -> Iterator[pa.Table]:
    """Yield the rows with after < time <= until, one table per row group."""
    for shards, groups in zip(sources, times, strict=True):
        for group, group_times in enumerate(groups):
            inside = (group_times > after) & (group_times <= until)
            if inside.any():
                table = shards.read(group, shards.schemas[0].names).filter(pa.array(inside))
                yield table.cast(pa.schema([_without_dictionary(column) for column in table.schema]))


def _without_dictionary(column: pa.Field) -> pa.Field:
    """Return the column; if it is dictionary-encoded, return it with the type of its values."""
    return column.with_type(column.type.value_type) if pa.types.is_dictionary(column.type) else column
