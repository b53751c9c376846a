"""Read the run directories of trainings: compare their losses, and write a summary of all runs."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from asymdiffrec.json_lines import read_json_lines

SHOWN_STEPS = (1, 10, 100)
"""Steps whose losses a comparison shows, in addition to the last step"""
ROW_CHECKSUM = "row_checksum"
"""Key in the record of a step: checksum of the rows of its batch"""


def records(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl."""
    return read_json_lines(run / "metrics.jsonl")


def by_step(run: Path, key: str) -> dict[int, Any]:
    """Return {step: value of `key`} for the records with this key."""
    return {record["step"]: record[key] for record in records(run) if key in record}


def last_metric(run: Path, key: str) -> float | None:
    """Return the last value of a metric in a run's metrics.jsonl, or None if no record has the metric."""
    values = [record[key] for record in records(run) if key in record]
    return values[-1] if values else None


def compare_losses(run: Path, reference: Path, limit: float, first: int = 100) -> dict[str, Any]:
    """Return relative differences between the losses of a run and a reference run, for the first steps and for all.

    `holds`: the losses up to step `first` differ by at most `limit`, and both runs trained on the same rows. Losses of
    later steps are not limited: the order of sums differs, and training amplifies the differences.
    """
    losses, expected = by_step(run, "loss"), by_step(reference, "loss")
    steps = sorted(losses.keys() & expected.keys())
    relative = {step: abs(losses[step] / expected[step] - 1) for step in steps}
    early = [difference for step, difference in relative.items() if step <= first]
    rows, expected_rows = by_step(run, ROW_CHECKSUM), by_step(reference, ROW_CHECKSUM)
    same_rows = bool(rows) and all(rows[step] == expected_rows.get(step) for step in rows)
    shown_steps = [step for step in (*SHOWN_STEPS, *steps[-1:]) if step in relative]
    return {
        "steps": len(steps),
        "limit": limit,
        "first": first,
        "same_rows": same_rows,
        "max_difference_first": max(early, default=None),
        "max_difference_all": max(relative.values(), default=None),
        "losses": {step: [losses[step], expected[step]] for step in shown_steps},
        **{
            f"{split}/auc": [last_metric(path, f"{split}/auc") for path in (run, reference)]
            for split in ("valid", "test")
        },
        "holds": bool(early) and same_rows and max(early) <= limit,
    }


def stop_after(run: Path, step: int, command: list[str]) -> dict[str, Any]:
    """Start a training, send SIGINT after step `step`, and return its exit status and its last step.

    `holds`: the exit status is 130, which means that the training was interrupted and saved a checkpoint.
    """
    with subprocess.Popen(command) as process:
        while process.poll() is None and not any(record["step"] >= step for record in records(run)):
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()
    file = run / "result.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    status = process.returncode
    return {"status": status, "outcome": result.get("outcome"), "step": result.get("step"), "holds": status == 130}


def compare_test_auc(run: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Compare the test AUC at the end of a training with `evaluate --json`, which loads the same step again.

    `best_is_not_last`: the best step is not the last step. Only then could rows of later steps change the metric.
    """
    tested = [record for record in records(run) if "test/auc" in record][-1]
    evaluated, last = evaluation["results"][0]["auc"], max(record["step"] for record in records(run))
    return {
        "best_step": tested["step"],
        "last_step": last,
        "test/auc": tested["test/auc"],
        "evaluated": evaluated,
        "best_is_not_last": tested["step"] < last,
        "holds": abs(tested["test/auc"] - evaluated) < 1e-5,
    }


def run_summary(run: Path) -> dict[str, Any]:
    """Return result.json of a run, with the last loss and the median speed of the second half of the steps added."""
    steps = [record for record in records(run) if "loss" in record]
    speeds = sorted(record["samples_per_second"] for record in steps[len(steps) // 2 :])
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    return result | {
        "samples_per_second": speeds[len(speeds) // 2] if speeds else None,
        "loss": steps[-1]["loss"] if steps else None,
        "loss_is_finite": all(math.isfinite(record["loss"]) for record in steps),
    }


def summary(work: Path, statuses: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a summary of all parts of a GPU day.

    It has the status of each part, the JSON files that the parts wrote, and a summary of each training run.
    """
    documents = {}
    for file in sorted(work.glob("*.json")):
        try:
            documents[file.stem] = json.loads(file.read_text())
        except ValueError:  # the part was stopped while it wrote the file
            documents[file.stem] = {"not_json": file.read_text()[:200]}
    runs = {path.parent.name: run_summary(path.parent) for path in sorted(work.glob("runs/*/result.json"))}
    return {"parts": statuses, "documents": documents, "runs": runs}
