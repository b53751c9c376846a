"""Stopping a run and going on with it."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.runs import ended, logged, stop_after


@pytest.fixture(scope="module")
def many_steps(clicks: Path, small: list[str], script: Path) -> list[Any]:
    """The command of a run of 288 steps: Ray hands a signal on within a second, in which a run of few would be over."""
    often = ["--set", "train.batch_size=32", "--set", "train.checkpoints.steps=20"]
    return [script, "train", clicks / "job.yaml", *small, *often, "--run"]


@pytest.fixture(scope="module")
def undisturbed(many_steps: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    subprocess.run([*many_steps, run], check=True, capture_output=True)
    return run


def wait_for_step(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        time.sleep(0.01)


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """The same lines in the log, and losses within what rounding adds up to: a batch that is lost or comes twice among
    the five of a line would change it by several percent."""
    mine, theirs = logged(run), logged(undisturbed)
    assert [record.keys() for record in mine] == [record.keys() for record in theirs]
    compared = {"step", "epoch", "loss", "loss_main", "valid/log_loss", "test/log_loss"}
    for own, other in zip(mine, theirs, strict=True):
        keys = compared & own.keys()
        assert [own[key] for key in keys] == pytest.approx([other[key] for key in keys], rel=5e-3)
    end, other = ended(run), ended(undisturbed)
    assert end.pop("state") == other.pop("state") == "finished"
    assert end == pytest.approx(other, rel=5e-3)


def test_interrupted_run_goes_on_to_the_same_end(many_steps: list[Any], undisturbed: Path, tmp_path: Path) -> None:
    """Two workers and Ctrl-C leave a checkpoint, from which one worker goes on."""
    run = tmp_path / "run"
    with subprocess.Popen([*many_steps, run, "--workers", "2"], stderr=subprocess.PIPE, text=True) as process:
        wait_for_step(5, run, process)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate()
    assert process.returncode == 130, message
    assert "--resume" in message
    result = json.loads((run / "result.json").read_text())
    assert result["state"] == "interrupted"
    assert result["step"] < 288
    assert not (run / "stop").exists()

    subprocess.run([*many_steps, run, "--workers", "1", "--resume"], check=True, capture_output=True)
    assert_same_end(run, undisturbed)


def test_a_killed_worker_costs_time_alone(many_steps: list[Any], undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([*many_steps, run, "--workers", "2"], stderr=subprocess.PIPE, text=True) as process:
        wait_for_step(45, run, process)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if any("RayTrainWorker" in part for part in child.cmdline())
        ]
        assert len(workers) == 2
        workers[1].kill()
        _, message = process.communicate()
    assert process.returncode == 0, message
    assert "died; the workers are started again" in message
    assert message.count("training goes on from step ") == 1
    assert_same_end(run, undisturbed)


def test_stop_at_an_epoch_s_end_loses_no_validation(
    clicks: Path,
    trained: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    small: list[str],
) -> None:
    """Stopped at step 18, which is logged and validated, and again at the last one, which is an end like any other."""
    run = tmp_path / "run"
    for stop_at, status in ((18, 130), (36, 0)):
        stop_after(stop_at, monkeypatch)
        settings = [*small[:-1], "train.log_every=6", *(["--resume"] if stop_at > 18 else [])]
        outcome = command("train", clicks / "job.yaml", "--run", run, *settings)
        assert outcome.status == status, outcome.err
    valid, undisturbed = ([entry for entry in logged(folder) if "valid/auc" in entry] for folder in (run, trained))
    for mine, theirs in zip(valid, undisturbed, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_run_is_resumed_as_what_it_is(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    before = (copy / "job.yaml").read_text()
    for setting, message in (
        ("model.head=[8]", "was started with"),
        ("train.seed=1", "train.seed is 1"),
        ("train.log_every=7", "has ended at step 36"),
    ):
        outcome = command("train", clicks / "job.yaml", "--run", copy, "--resume", "--set", setting)
        assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome.err
        assert message in outcome.err
    assert (copy / "job.yaml").read_text() == before
    assert command("train", clicks / "job.yaml", "--run", copy, "--resume", "--set", "train.epochs=3").status == 0
    assert json.loads((copy / "result.json").read_text())["step"] == 54


def test_training_twice_needs_another_folder(trained: Path, clicks: Path, command: Callable[..., Any]) -> None:
    outcome = command("train", clicks / "job.yaml", "--run", trained)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "--resume" in outcome.err


def test_a_failure_after_the_last_step_is_made_good(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "result.json").unlink()
    assert command("train", clicks / "job.yaml", "--run", copy, "--resume").status == 0
    assert ended(copy) == ended(trained)


def test_two_trainings_do_not_share_a_run(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    with (copy / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = command("train", clicks / "job.yaml", "--run", copy, "--resume", "--set", "train.epochs=3")
    assert (outcome.status, outcome.err) == (2, f"error: {copy}: a training is running there\n")
