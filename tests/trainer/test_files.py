"""Which files a run trains on: those it was started with, wherever they are."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from asymdiffrec.trainer.fit import loop

EPOCH = 18


def added(run: Path) -> list[tuple[int, list[str]]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["files_added"]) for record in records if "files_added" in record]


def losses(run: Path) -> list[float]:
    return [
        record["loss"]
        for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "loss" in record
    ]


@pytest.fixture
def data(clicks: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clicks, tmp_path / "data")


def add(data: Path, name: str) -> None:
    shutil.copy(data / "train/part-00000.parquet", data / "train" / name)


def test_files_that_are_added_are_said_and_not_used(
    data: Path,
    trained: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between epochs and before a run is resumed; its losses are those of a run that never saw them."""
    run, save = tmp_path / "run", loop.TrainingLoop.save
    arguments = ["train", data / "job.yaml", "--run", run, *small]

    def add_and_save(training: loop.TrainingLoop, saver: Any, progress: Any) -> Any:
        if progress.step == EPOCH:
            add(data, "late.parquet")
        return save(training, saver, progress)

    monkeypatch.setattr(loop.TrainingLoop, "save", add_and_save)
    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    assert added(run) == [(2 * EPOCH, ["late.parquet"])]
    assert "not used: 1 training files added since the run was started (late.parquet)" in outcome.err
    assert losses(run) == pytest.approx(losses(trained), rel=1e-4)

    for name in "abc":
        add(data, f"{name}.parquet")
    outcome = command(*arguments, "--resume", "--set", "train.epochs=3")
    assert outcome.status == 0, outcome.err
    assert (
        "not used: 4 training files added since the run was started (a.parquet, b.parquet, c.parquet, …)" in outcome.err
    )
    assert added(run) == [(2 * EPOCH, ["late.parquet"])]


def test_files_that_are_gone_or_changed_stop_a_resumed_run(
    data: Path, trained: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    arguments = ["train", data / "job.yaml", "--run", run, "--resume"]
    arguments += ["--set", f"data.path={data}", "--set", "train.epochs=3"]
    file = data / "train/part-00000.parquet"
    pq.write_table(pq.read_table(file), file, row_group_size=500)
    outcome = command(*arguments)
    assert outcome.status == 2
    assert f"{file}: has 10 row groups" in outcome.err
    file.rename(data / "train/other.parquet")
    outcome = command(*arguments)
    assert outcome.status == 2
    assert f"{file}: is gone, but the run was started with it" in outcome.err


def test_a_job_trains_from_an_object_store(
    clicks: Path,
    trained: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": "key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        store, _ = pafs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        store.create_dir("bucket")
        pafs.copy_files(str(clicks), "bucket/clicks", pafs.LocalFileSystem(), store)
        run = tmp_path / "run"
        outcome = command("train", clicks / "job.yaml", "--run", run, *small, "--set", "data.path=s3://bucket/clicks")
        assert outcome.status == 0, outcome.err
        assert losses(run) == pytest.approx(losses(trained), rel=1e-4)
    finally:
        server.stop()
