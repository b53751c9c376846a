"""Losses and metrics of training do not depend on the number of workers or on how the tables are sharded."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from asymdiffrec.json_lines import read_json_lines
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.fit.pipeline import OverlappedPipeline
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run
from tests.trainer.runs import records_without_times, torchrun

SETTINGS = [
    "train.batch_size=128",
    "train.epochs=2",
    "train.steps=50",
    "train.log_every=1",
    "train.validation.every=36",
]
SHARDINGS = {
    "user_id": "table_wise",
    "item_id": "row_wise",
    "gender": "data_parallel",
    "city": "column_wise",
    "category": "row_wise",
    "brand": "data_parallel",
    "tags": "column_wise",
}


def read_records(run: Path) -> list[dict[str, Any]]:
    """Return all records of a run's metrics file."""
    return read_json_lines(run / "metrics.jsonl")


def train(clicks: Path, run: Path, *settings: str) -> list[dict[str, Any]]:
    """Train on one worker, and return the records of the run."""
    job = read_job(clicks / "job.yaml", [*SETTINGS, *settings])
    train_job(job, read_statistics(job), Run(run), console=Console(quiet=True))
    return read_records(run)


def train_on_two_workers(data: Path, run: Path, settings: Sequence[str]) -> list[dict[str, Any]]:
    """Train on two workers, with tables sharded in every way, and return the records of the run."""
    sharding = json.dumps({table: {"sharding": kind} for table, kind in SHARDINGS.items()})
    overrides = (*settings, f"tables.per_table={sharding}")
    options = [part for override in overrides for part in ("--set", override)]
    command = torchrun(2, "train", data / "job.yaml", "--run", run, *options)
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return read_records(run)


def test_one_and_two_workers_and_every_sharding_agree(clicks: Path, tmp_path: Path) -> None:
    """Train 50 steps over two epochs, with evaluations whose rows cannot be divided equally among the workers.

    Dense gradients are accumulated and clipped after the workers have averaged them.
    """
    update = ["train.accumulate=2", "train.clip_norm=0.1"]
    alone = train(clicks, tmp_path / "one", *update)
    together = train_on_two_workers(clicks, tmp_path / "two", [*SETTINGS, *update])
    plan = json.loads((tmp_path / "two" / "plan.json").read_text())
    assert plan["world_size"] == 2
    assert SHARDINGS.items() <= {table["name"]: table["sharding"] for table in plan["tables"]}.items()

    assert [record["step"] for record in together] == [record["step"] for record in alone]
    assert sum("loss" in record for record in alone) == 50
    compared = {
        "loss",
        "loss_main",
        "loss_aux",
        "loss_distil",
        "valid/log_loss",
        "test/log_loss",
        "test/rows",
    }
    for mine, theirs in zip(alone, together, strict=True):
        for key in compared & mine.keys():
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3), (key, mine["step"])


def test_the_pipeline_for_gpus_computes_the_same(clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline has looked up the next batch already; an evaluation between two steps must not get that result."""
    train(clicks, tmp_path / "plain", "train.validation.every=10")

    def overlapping(model: Any, optimizer: Any, device: torch.device) -> OverlappedPipeline:
        return OverlappedPipeline(model, optimizer, device, execute_all_batches=False)

    monkeypatch.setattr("asymdiffrec.trainer.fit.pipeline.PlainPipeline", overlapping)
    records = train(clicks, tmp_path / "overlapping", "train.validation.every=10")
    assert sum("valid/auc" in record for record in records) == 5
    for mine, theirs in zip(
        records_without_times(tmp_path / "plain"), records_without_times(tmp_path / "overlapping"), strict=True
    ):
        assert theirs.pop("row_checksum", None) == mine.pop("row_checksum", None)
        assert theirs == pytest.approx(mine, rel=1e-5)


def test_diverging_training_is_an_error(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError,
        match=r"loss is (-?inf|nan|\S+e\+\d+) at step \d+ on worker 0 \(epoch .* Lower train\.learning_rate",
    ):
        train(clicks, tmp_path / "run", "train.learning_rate=1e30")


def test_training_stops_early(clicks: Path, tmp_path: Path) -> None:
    settings = ["train.learning_rate=1e-12", "tables.optimizer.learning_rate=1e-12", "train.validation.every=2"]
    records = train(clicks, tmp_path / "run", *settings, "train.validation.patience=3")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["outcome"] == "stopped early"
    assert result["validations_since_best"] == 3
    assert result["step"] == result["best_step"] + 6
    assert records[-1]["step"] == result["best_step"]
    assert all(math.isfinite(record["test/auc"]) for record in records if "test/auc" in record)
