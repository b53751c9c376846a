"""Stopping a run and resuming it."""

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

from asymdiffrec.json_lines import read_json_lines
from tests.trainer.runs import records_without_times, result_without_measurements, stop_at, torchrun


@pytest.fixture(scope="module")
def many_steps(clicks: Path, small: list[str]) -> list[Any]:
    """The arguments of a run with 288 steps."""
    often = ["--set", "train.batch_size=32", "--set", "train.checkpoints.steps=20"]
    return ["train", clicks / "job.yaml", *small, *often, "--run"]


def wait_for_step(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has logged this step or a later one, or its process has ended."""
    metrics = run / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and any(record["step"] >= step for record in read_json_lines(metrics)):
            return
        time.sleep(0.01)


def assert_same_end(run: Path, undisturbed: Path) -> None:
    """Check that two runs logged the same records, of the same rows, with losses equal up to rounding."""
    mine, theirs = records_without_times(run), records_without_times(undisturbed)
    assert [record.keys() for record in mine] == [record.keys() for record in theirs]
    compared = {"step", "epoch", "loss", "loss_main", "valid/log_loss", "test/log_loss"}
    for own, other in zip(mine, theirs, strict=True):
        keys = compared & own.keys()
        assert [own[key] for key in keys] == pytest.approx([other[key] for key in keys], rel=5e-3)
        assert own.get("row_checksum") == other.get("row_checksum")
    end, other = result_without_measurements(run), result_without_measurements(undisturbed)
    assert end.pop("outcome") == other.pop("outcome") == "finished"
    assert end == pytest.approx(other, rel=5e-3)


def test_an_interrupted_and_resized_run_learns_from_the_same_rows(
    many_steps: list[Any], script: Path, tmp_path: Path
) -> None:
    """Train on one worker and interrupt; on two, kill one and interrupt; on four until the end."""
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    subprocess.run([script, *many_steps, undisturbed], check=True, capture_output=True)
    reached = 5
    for command in ([script, *many_steps, run], torchrun(2, *many_steps, run, "--resume")):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            if reached > 5:  # a step that only the two workers can have reached, however far the first session went
                wait_for_step(reached - 60, run, process)
                kill_second_worker(process)
            wait_for_step(reached, run, process)
            process.send_signal(signal.SIGINT)
            _, message = process.communicate()
        assert process.returncode != 0, message
        assert "--resume" in message
        result = json.loads((run / "result.json").read_text())
        assert (result["outcome"], reached <= result["step"] < 288) == ("interrupted", True)
        assert not (run / "stop").exists()
        reached = result["step"] + 80
    assert message.count("training continues from step ") == 2

    subprocess.run(torchrun(4, *many_steps, run, "--resume"), check=True, capture_output=True)
    assert_same_end(run, undisturbed)


def test_sigterm_stops_ray_s_workers_with_a_checkpoint(many_steps: list[Any], script: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with subprocess.Popen([script, *many_steps, run, "--workers", "2"], stderr=subprocess.PIPE, text=True) as process:
        wait_for_step(5, run, process)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    result = json.loads((run / "result.json").read_text())
    assert (result["outcome"], 5 <= result["step"] < 288) == ("interrupted", True)
    assert (run / "checkpoints" / f"step-{result['step']}" / "manifest.json").exists()


def kill_second_worker(torchrun: subprocess.Popen[str]) -> None:
    """Kill the worker with rank 1."""
    workers = [child for child in psutil.Process(torchrun.pid).children() if "train" in child.cmdline()]
    assert [worker.environ()["RANK"] for worker in workers] == ["0", "1"]
    workers[1].kill()


def test_a_stop_at_the_end_of_an_epoch_loses_no_validation(
    clicks: Path,
    trained: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    small: list[str],
) -> None:
    """Stop at step 18, which is logged and validated, and again at the last step, where the run ends as usual."""
    run = tmp_path / "run"
    for last_step, status in ((18, 130), (36, 0)):
        stop_at(last_step, monkeypatch)
        settings = [*small[:-1], "train.log_every=6", *(["--resume"] if last_step > 18 else [])]
        outcome = command("train", clicks / "job.yaml", "--run", run, *settings)
        assert outcome.status == status, outcome.err
    valid, undisturbed = (
        [entry for entry in records_without_times(folder) if "valid/auc" in entry] for folder in (run, trained)
    )
    for mine, theirs in zip(valid, undisturbed, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_resume_cannot_change_fixed_settings_and_can_add_epochs(
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


def test_a_second_training_in_a_run_directory_is_an_error(
    trained: Path, clicks: Path, command: Callable[..., Any]
) -> None:
    outcome = command("train", clicks / "job.yaml", "--run", trained)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "--resume" in outcome.err


def test_a_resume_after_the_last_step_repeats_the_test(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "result.json").unlink()
    assert command("train", clicks / "job.yaml", "--run", copy, "--resume").status == 0
    assert result_without_measurements(copy) == result_without_measurements(trained)


def test_two_trainings_at_once_in_a_run_directory_are_an_error(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    with (copy / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = command("train", clicks / "job.yaml", "--run", copy, "--resume", "--set", "train.epochs=3")
    assert (outcome.status, outcome.err) == (
        2,
        f"error: {copy}: another training is running in this directory; wait until it ends, or choose another --run\n",
    )
