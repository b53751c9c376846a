"""A run trains on the files that it was started with, on disk or in an object store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from asymdiffrec.json_lines import read_json_lines
from asymdiffrec.trainer.fit import loop
from tests.trainer.runs import step_losses

STEPS_PER_EPOCH = 18


def reported_files(run: Path) -> list[tuple[int, list[str]]]:
    """Return the steps after which added files were reported, with their names."""
    records = read_json_lines(run / "metrics.jsonl")
    return [(record["step"], record["files_added"]) for record in records if "files_added" in record]


@pytest.fixture
def data(clicks: Path, tmp_path: Path) -> Path:
    """A copy of the data set to change."""
    return shutil.copytree(clicks, tmp_path / "data")


def add_file(data: Path, name: str) -> None:
    """Add a training file, a copy of existing rows."""
    shutil.copy(data / "train/part-00000.parquet", data / "train" / name)


def test_added_files_are_reported_and_not_used(
    data: Path,
    trained: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files are added between epochs and before a resume; the losses are those of a run without these files."""
    run, save = tmp_path / "run", loop.TrainingLoop.save
    arguments = ["train", data / "job.yaml", "--run", run, *small]

    def add_file_and_save(training: loop.TrainingLoop, saver: Any, progress: Any) -> Any:
        if progress.step == STEPS_PER_EPOCH:
            add_file(data, "late.parquet")
        return save(training, saver, progress)

    monkeypatch.setattr(loop.TrainingLoop, "save", add_file_and_save)
    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    assert reported_files(run) == [(2 * STEPS_PER_EPOCH, ["late.parquet"])]
    assert "not used: 1 training files added since the run was started (late.parquet)" in outcome.err
    assert step_losses(run) == pytest.approx(step_losses(trained), rel=1e-4)

    for name in "abc":
        add_file(data, f"{name}.parquet")
    outcome = command(*arguments, "--resume", "--set", "train.epochs=3")
    assert outcome.status == 0, outcome.err
    assert (
        "not used: 4 training files added since the run was started (a.parquet, b.parquet, c.parquet, …)" in outcome.err
    )
    assert reported_files(run) == [(2 * STEPS_PER_EPOCH, ["late.parquet"])]


def test_missing_or_changed_files_are_an_error_on_resume(
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
    assert f"{file}: no longer exists, but the run started with this file" in outcome.err


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
        assert step_losses(run) == pytest.approx(step_losses(trained), rel=1e-4)
    finally:
        server.stop()
