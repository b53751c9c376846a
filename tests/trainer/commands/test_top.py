"""`top` on a run that has ended, a run that trains, and a run without new records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asymdiffrec.trainer.metrics import METRICS


def test_run_that_has_ended(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("top", trained, "--once")
    assert outcome.status == 0
    assert "finished at step 36, best step" in " ".join(outcome.err.split())
    assert "waits for others" in outcome.err
    assert "validation" in outcome.err
    assert all(metric.heading in outcome.err for metric in METRICS.values()), "on 80 characters no heading is wrapped"
    assert "training begins, 1 worker" in outcome.err
    assert command("top", trained).status == 0, "without --once it ends with the run"


def test_run_that_trains_and_run_without_news(trained: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "result.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    last = next(number for number, line in enumerate(lines) if '"step": 20' in line)
    unfinished_line = lines[last + 1][:10]
    (run / "metrics.jsonl").write_text("".join(lines[: last + 1]) + unfinished_line)
    shown = " ".join(command("top", run, "--once").err.split())
    assert "step 20 of 36, epoch 2" in shown
    assert "no new record" not in shown
    os.utime(run / "metrics.jsonl", (0, 0))
    assert "no new record for" in " ".join(command("top", run, "--once").err.split())
    (run / "metrics.jsonl").unlink()
    assert "nothing written yet" in " ".join(command("top", run, "--once").err.split())


def test_folder_that_is_no_run(tmp_path: Path, command: Callable[..., Any]) -> None:
    outcome = command("top", tmp_path, "--once")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "not a run directory" in outcome.err
