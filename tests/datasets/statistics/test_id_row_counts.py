"""Counting on disk in how many rows each id occurs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.statistics import id_row_counts
from asymdiffrec.datasets.statistics.id_row_counts import IdRowCounts


def test_ids_that_exceed_the_memory_are_counted_exactly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(id_row_counts, "MAX_PENDING_IDS", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    drawn = {"a": rng.integers(-(2**63), 2**63 - 1, 3000), "b": rng.integers(0, 5, 10)}
    total: dict[str, dict[int, int]] = {"a": {}, "b": {}}
    with IdRowCounts(["a", "b", "none"], threads=2) as counts:
        for _ in range(8):
            for field, ids in drawn.items():
                some = rng.choice(np.unique(ids), min(900, len(np.unique(ids))), replace=False)
                rows = rng.integers(1, 4, len(some))
                counts.add(field, pa.array(some), pa.array(rows))
                for identity, count in zip(some.tolist(), rows.tolist(), strict=True):
                    total[field][identity] = total[field].get(identity, 0) + count
        for field, counted in total.items():
            ids, distinct = counts.frequent_ids(field, 6)
            assert ids.dtype == np.int64
            assert ids.tolist() == sorted(identity for identity, count in counted.items() if count >= 6)
            assert distinct == len(counted)
        assert counts.frequent_ids("none", 2)[0].tolist() == []
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_without_fields_no_folder_is_created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with IdRowCounts([], threads=1):
        pass


def test_too_little_memory_is_an_error_that_names_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_row_counts, "MEMORY_LIMIT", "1MB")
    with IdRowCounts(["a"], threads=1) as counts:
        counts.add("a", pa.array(np.arange(300_000)), pa.array(np.ones(300_000, np.int64)))
        with pytest.raises(InputError, match=r"cannot count ids in this folder .+TMPDIR"):
            counts.frequent_ids("a", 2)
