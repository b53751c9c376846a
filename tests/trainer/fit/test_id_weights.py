"""Id lists with a weight for each id train the same under every sharding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run
from tests.trainer.fit.test_loop import read_records, train_on_two_workers

SETTINGS = ["train.batch_size=128", "train.steps=12", "train.log_every=1"]
WEIGHTS = ["fields.history.weights=shares"]


def weighted(clicks: Path, folder: Path, draw: Callable[[int], np.ndarray]) -> Path:
    """Return a copy of the data with a weight for each id of the histories."""
    shutil.copytree(clicks, folder)
    for file in folder.glob("*/*.parquet"):
        table = pq.read_table(file)
        lengths = pc.fill_null(pc.list_value_length(table["history"].combine_chunks()), 0).to_numpy()
        ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        shares = pa.ListArray.from_arrays(ends, pa.array(draw(int(lengths.sum()))))
        pq.write_table(table.append_column("shares", shares), file)
    return folder


def losses(data: Path, run: Path, *settings: str) -> list[float]:
    """Train on one worker, and return the losses of its steps and of the test."""
    job = read_job(data / "job.yaml", [*SETTINGS, *settings])
    train_job(job, read_statistics(job), Run(run), console=Console(quiet=True))
    return losses_in(read_records(run))


def losses_in(records: list[dict[str, Any]]) -> list[float]:
    """Return the losses of steps and of the test from the records of a run."""
    return [record[key] for record in records for key in ("loss", "test/log_loss") if key in record]


def test_equal_weights_have_no_effect(clicks: Path, tmp_path: Path) -> None:
    data = weighted(clicks, tmp_path / "data", lambda count: np.full(count, 3.0))
    plain, equal = (losses(data, tmp_path / str(len(more)), *more) for more in ([], WEIGHTS))
    assert len(plain) == 13
    assert equal == pytest.approx(plain, rel=1e-4)


def test_weights_are_sharded_with_their_ids(clicks: Path, tmp_path: Path) -> None:
    data = weighted(clicks, tmp_path / "data", lambda count: np.random.default_rng(count).exponential(size=count))
    settings = [*WEIGHTS, "fields.history.pooling=sum", "tables.init_std=2"]
    alone = losses(data, tmp_path / "one", *settings)
    together = losses_in(train_on_two_workers(data, tmp_path / "two", [*SETTINGS, *settings]))
    assert together == pytest.approx(alone, rel=1e-3)
    assert alone != pytest.approx(losses(data, tmp_path / "plain", *settings[1:]), rel=1e-2)
