"""Periods of rows in order of time: none is learned from that is as late as one that is judged."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.periods import write_periods
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
    """Rows out of order, in two splits."""
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
def test_each_period_is_later_than_what_is_learned_from(tmp_path: Path, kind: str) -> None:
    ticks = np.repeat(np.arange(60), 2)  # two rows of each time
    start = datetime.datetime(2026, 1, 1)
    times = pa.array(ticks if kind == "int64" else [start + datetime.timedelta(days=int(tick)) for tick in ticks])
    times = times.cast(pa.date32()) if kind == "date" else times
    files = write_periods(tmp_path / "out", sources(tmp_path / "raw", times), JOB, "at", 3)
    assert [file.parent.name for file in files] == ["1", "2", "3"]
    judged = []
    for file in files:
        parts = {name: pq.read_table(file.parent / name) for name in ("train", "valid", "test")}
        first, last = (
            {name: np.sort(part["at"].to_numpy())[place] for name, part in parts.items()} for place in (0, -1)
        )
        assert last["train"] < first["valid"] <= last["valid"] < first["test"]
        judged.append(set(parts["test"]["user"].to_pylist()))
        known = set(parts["train"]["user"].to_pylist()) | set(parts["valid"]["user"].to_pylist())
        assert known == set(range(min(judged[-1]))), "all that is earlier, and nothing else"
    assert [len(users) for users in judged] == [30, 30, 30]
    written = (files[0].parent / "statistics.yaml").stat().st_mtime_ns
    again = write_periods(
        tmp_path / "out", [open_shards(str(tmp_path / "raw" / n)) for n in ("train", "test")], JOB, "at", 3
    )
    assert again == files
    assert (files[0].parent / "statistics.yaml").stat().st_mtime_ns == written, "what is there stays"


def test_what_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at: too few different times for 4 periods"):
        write_periods(tmp_path / "out", sources(tmp_path / "few", pa.array([1, 2, 3] * 20)), JOB, "at", 3)
    with pytest.raises(InputError, match="too few different times before period 1"):
        write_periods(
            tmp_path / "one", sources(tmp_path / "coarse", pa.array(np.repeat([1, 2, 3, 4], 10))), JOB, "at", 3
        )
    with pytest.raises(InputError, match="at is string; a date, a timestamp or a number is needed"):
        write_periods(tmp_path / "out", sources(tmp_path / "text", pa.array(["a", "b"] * 20)), JOB, "at", 1)
    with pytest.raises(InputError, match="rows have no at"):
        write_periods(tmp_path / "out", sources(tmp_path / "gaps", pa.array([1, None] * 20)), JOB, "at", 1)
