"""What tests ask of runs, and how they stop one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asymdiffrec.trainer.guard import LossGuard


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


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as two workers that torchrun starts."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "asymdiffrec")
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def stop_after(step: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs asked for a stop in the course of a step."""
    may_learn = LossGuard.may_learn

    def asked(guard: LossGuard, loss: torch.Tensor) -> bool:
        may = may_learn(guard, loss)
        guard.agreed = replace(guard.agreed, stop=guard.step + 1 == step)
        return may

    monkeypatch.setattr(LossGuard, "may_learn", asked)
