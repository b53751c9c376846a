"""What tests ask of runs, and how they stop one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asymdiffrec.trainer.fit.consensus import StepConsensus


def ended(run: Path) -> dict[str, Any]:
    """How a run ended, without what it took."""
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    del result["measured"]
    return result


def logged(run: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    times = ("samples_per_second", "seconds_left", "data_wait", "ranks")
    return [
        {key: value for key, value in record.items() if key not in times}
        for record in records
        if "workers" not in record  # of which an interrupted run has more
    ]


def torchrun(count: int, *arguments: object) -> list[str]:
    """The command as so many workers that torchrun starts, and once again where one dies."""
    workers = ("--standalone", "--nproc-per-node", str(count), "--max-restarts", "1", "--monitor-interval", "0.1")
    return [sys.executable, "-m", "torch.distributed.run", *workers, "-m", "--", "asymdiffrec", *map(str, arguments)]


def stop_after(step: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs asked for a stop in the course of a step."""
    should_update = StepConsensus.should_update

    def asked(guard: StepConsensus, loss: torch.Tensor) -> bool:
        updates = should_update(guard, loss)
        guard.decision = replace(guard.decision, stop=guard.step + 1 == step)
        return updates

    monkeypatch.setattr(StepConsensus, "should_update", asked)
