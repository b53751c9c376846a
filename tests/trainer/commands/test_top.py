"""A run as `top` shows it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_run_that_has_ended(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("top", trained, "--once")
    assert outcome.status == 0
    assert "finished at step 36, best step" in " ".join(outcome.err.split())
    assert "waits for others" in outcome.err
    assert "validated at" in outcome.err
    assert "training begins, 1 worker" in outcome.err
    assert command("top", trained).status == 0  # shows it once: nothing is to come


def test_a_run_that_goes_on_and_one_that_is_silent(trained: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "result.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    until = next(number for number, line in enumerate(lines) if '"step": 20' in line)
    (run / "metrics.jsonl").write_text(
        "".join(lines[: until + 1]) + lines[until + 1][:10]
    )  # half a line is being written
    shown = " ".join(command("top", run, "--once").err.split())
    assert "step 20 of 36, epoch 2" in shown
    assert "no news" not in shown
    os.utime(run / "metrics.jsonl", (0, 0))
    assert "no news for" in " ".join(command("top", run, "--once").err.split())
    (run / "metrics.jsonl").unlink()
    assert "nothing written yet" in " ".join(command("top", run, "--once").err.split())


def test_what_is_no_run(tmp_path: Path, command: Callable[..., Any]) -> None:
    outcome = command("top", tmp_path, "--once")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "not a run directory" in outcome.err
