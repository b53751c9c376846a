"""Helpers for tests that train: read what a run wrote, start workers with torchrun, stop a run at a given step."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asymdiffrec.json_lines import read_json_lines
from asymdiffrec.trainer.fit.consensus import StepConsensus
from asymdiffrec.trainer.run import Run

TIMES = ("samples_per_second", "seconds_left", "data_wait", "ranks")
"""Keys of a step's record that differ from run to run"""


def result_without_measurements(run: Path) -> dict[str, Any]:
    """Return the result of a run without the measured times and bytes."""
    result = Run(run).result()
    assert result is not None
    return {key: value for key, value in result.items() if key != "measured"}


def records_without_times(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics file without times, and without the starts of sessions."""
    return [
        {key: value for key, value in record.items() if key not in TIMES}
        for record in read_json_lines(Run(run).metrics_file)
        if "workers" not in record  # one per session: an interrupted run has several
    ]


def step_losses(run: Path) -> list[float]:
    """Return the losses of the logged steps of a run."""
    return [record["loss"] for record in read_json_lines(Run(run).metrics_file) if "loss" in record]


def torchrun(count: int, *arguments: object) -> list[str]:
    """Return a command that runs `asymdiffrec ARGUMENTS` on `count` workers, and restarts them once if one dies."""
    options = ("--standalone", "--nproc-per-node", str(count), "--max-restarts", "1", "--monitor-interval", "0.1")
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "--", "asymdiffrec", *map(str, arguments)]


def stop_at(step: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trainings in this process stop with a checkpoint after `step` steps, as after Ctrl-C. None: do not stop."""
    should_update = StepConsensus.should_update

    def stop(consensus: StepConsensus, loss: torch.Tensor) -> bool:
        updates = should_update(consensus, loss)
        consensus.decision = replace(consensus.decision, stop=consensus.step + 1 == step)
        return updates

    monkeypatch.setattr(StepConsensus, "should_update", stop)
