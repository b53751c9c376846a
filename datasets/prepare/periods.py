"""Rows in order of time, cut into periods: what is known before each one, and the period itself, as a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.output import write_dataset
from asymdiffrec.datasets.shards import Shards

VALIDATION = 0.1
"""Of the rows before a period, the latest, to choose the best step by"""


def write_periods(out: Path, sources: Sequence[Shards], job: Mapping[str, Any], time: str, count: int) -> list[Path]:
    """`count` data sets, out/1 and on: of count + 1 periods of as many rows, in order of the column `time`, the test
    split of the first is the second one, and training and validation rows are those before. Rows of one time stay
    together. A data set that is there already stays; gives their job files.

    Raises InputError where a row has no time, or where there are too few different times.
    """
    times = [[_times(shards, group, time) for group in range(len(shards.row_groups))] for shards in sources]
    every = np.sort(np.concatenate([group for groups in times for group in groups]))
    ends = np.unique(every[np.linspace(0, len(every), count + 2)[1:].astype(np.int64) - 1])
    if len(ends) <= count:
        raise InputError(f"{time}: too few different times for {count + 1} periods of as many rows")
    files = []
    for number in range(1, count + 1):
        folder = out / str(number)
        before = every[: np.searchsorted(every, ends[number - 1], side="right")]
        earlier = before[before < before[-1]]
        if not len(earlier):
            raise InputError(f"{time}: too few different times before period {number} to train and to validate")
        cut = min(before[int((1 - VALIDATION) * len(before)) - 1], earlier[-1])
        bounds = {"train": (-np.inf, cut), "valid": (cut, ends[number - 1]), "test": (ends[number - 1], ends[number])}
        if not folder.exists():
            splits = {name: _between(sources, times, *pair) for name, pair in bounds.items()}
            write_dataset(folder, splits, {**job, "data": {**job["data"], "path": "."}})
        files.append(folder / "job.yaml")
    return files


def _times(shards: Shards, group: int, time: str) -> np.ndarray:
    """[R] float64"""
    column = shards.read(group, [time]).column(time)
    kind = shards.schemas[0].field(time).type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"{shards.location_of(group)}: {time} is {kind}; a date, a timestamp or a number is needed")
    found: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy()
    if lacking := int(np.isnan(found).sum()):
        raise InputError(f"{shards.location_of(group)}: {lacking} rows have no {time}")
    return found


def _between(
    sources: Sequence[Shards], times: Sequence[Sequence[np.ndarray]], after: float, until: float
) -> Iterator[pa.Table]:
    for shards, groups in zip(sources, times, strict=True):
        for group, found in enumerate(groups):
            inside = (found > after) & (found <= until)
            if inside.any():
                table = shards.read(group, shards.schemas[0].names).filter(pa.array(inside))
                yield table.cast(pa.schema([_plain(column) for column in table.schema]))


def _plain(column: pa.Field) -> pa.Field:
    """Of its values, where the reader gives a dictionary of them."""
    return column.with_type(column.type.value_type) if pa.types.is_dictionary(column.type) else column
