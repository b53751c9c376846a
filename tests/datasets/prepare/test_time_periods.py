"""Data sets of consecutive periods: training and validation rows are earlier than the test rows."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.time_periods import write_periods
from asymdiffrec.datasets.shards import Shards, open_shards

JOB = {
    "name": "log",
    "data": {"label": "label", "time": "at"},
    "fields": {
        "user": {"type": "id", "num_embeddings": 9},
        "city": {"type": "id", "num_embeddings": 9, "values": "string"},
    },
}


def sources(folder: Path, times: pa.Array) -> list[Shards]:
    """Write rows in random order to two splits and open them."""
    rows = len(times)
    table = pa.table(
        {"user": range(rows), "city": ["a", "b"] * (rows // 2), "label": [0, 1] * (rows // 2), "at": times}
    )
    table = table.take(np.random.default_rng(0).permutation(rows))
    for name, part in (("train", table.slice(0, rows // 2)), ("test", table.slice(rows // 2))):
        (folder / name).mkdir(parents=True)
        pq.write_table(part, folder / name / "part.parquet", row_group_size=7)
    return [open_shards(str(folder / name)) for name in ("train", "test")]


@pytest.mark.parametrize("kind", ["int64", "timestamp", "date"])
def test_test_rows_are_later_than_training_and_validation_rows(tmp_path: Path, kind: str) -> None:
    ticks = np.repeat(np.arange(60), 2)  # two rows of each time
    start = datetime.datetime(2026, 1, 1)
    times = pa.array(ticks if kind == "int64" else [start + datetime.timedelta(days=int(tick)) for tick in ticks])
    times = times.cast(pa.date32()) if kind == "date" else times
    files = write_periods(tmp_path / "out", sources(tmp_path / "raw", times), JOB, "at", 3)
    assert [file.parent.name for file in files] == ["1", "2", "3"]
    test_users = []
    for file in files:
        parts = {name: pq.read_table(file.parent / name) for name in ("train", "valid", "test")}
        first, last = (
            {name: np.sort(part["at"].to_numpy())[index] for name, part in parts.items()} for index in (0, -1)
        )
        assert last["train"] < first["valid"] <= last["valid"] < first["test"]
        test_users.append(set(parts["test"]["user"].to_pylist()))
        earlier = set(parts["train"]["user"].to_pylist()) | set(parts["valid"]["user"].to_pylist())
        assert earlier == set(range(min(test_users[-1]))), "all earlier rows, and no others"
    assert [len(users) for users in test_users] == [30, 30, 30]
    written = (files[0].parent / "statistics.yaml").stat().st_mtime_ns
    again = write_periods(
        tmp_path / "out", [open_shards(str(tmp_path / "raw" / n)) for n in ("train", "test")], JOB, "at", 3
    )
    assert again == files
    assert (files[0].parent / "statistics.yaml").stat().st_mtime_ns == written, "not written again"


def test_times_that_cannot_be_cut_into_periods_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="column at: too few different times for 4 periods"):
        write_periods(tmp_path / "out", sources(tmp_path / "few", pa.array([1, 2, 3] * 20)), JOB, "at", 3)
    with pytest.raises(InputError, match="column at: all rows before period 1 have the same time"):
        write_periods(
            tmp_path / "one", sources(tmp_path / "coarse", pa.array(np.repeat([1, 2, 3, 4], 10))), JOB, "at", 3
        )
    with pytest.raises(InputError, match="column at: found type string; allowed are date, timestamp and number"):
        write_periods(tmp_path / "out", sources(tmp_path / "text", pa.array(["a", "b"] * 20)), JOB, "at", 1)
    with pytest.raises(InputError, match=r"column at: .* rows have no time"):
        write_periods(tmp_path / "out", sources(tmp_path / "gaps", pa.array([1, None] * 20)), JOB, "at", 1)
