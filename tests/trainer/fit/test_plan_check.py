"""The result of a run compares measured values with its plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asymdiffrec.trainer.fit.plan_check import describe_measured


def test_the_result_has_planned_and_measured_values(trained: Path) -> None:
    measured = json.loads((trained / "result.json").read_text())["measured"]
    plan = json.loads((trained / "plan.json").read_text())
    (rank,) = measured["memory_bytes"]
    assert rank["planned"] == plan["ranks"][0]["memory_bytes"] - plan["reserved_bytes"]
    assert rank["measured"] > 0
    assert measured["step_milliseconds"]["planned"] == plan["step_milliseconds"]
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [256_000 / record["samples_per_second"] for record in records if "loss" in record]
    assert min(steps) <= measured["step_milliseconds"]["measured"] <= max(steps)
    assert measured["imbalance"] == {"planned": 0, "measured": 0}  # there is one worker
    assert describe_measured(measured).startswith("Measured (planned): step ")


def test_the_last_line_of_training_compares_them(
    command: Callable[..., Any], clicks: Path, small: list[str], tmp_path: Path
) -> None:
    outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", *small, "--set", "train.steps=6")
    assert outcome.status == 0, outcome.err
    assert outcome.err.strip().splitlines()[-1].startswith("Measured (planned): step ")
