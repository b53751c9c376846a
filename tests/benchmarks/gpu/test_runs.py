"""Tests of comparing and summarizing runs. The logs are artificial."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.results import document
from benchmarks.gpu.runs import ROW_CHECKSUM, compare_losses, compare_test_auc, run_summary, stop_after, summary


def write_run(run: Path, losses: list[float], rows: str = "a", **last: Any) -> Path:
    run.mkdir(parents=True)
    records: list[dict[str, Any]] = [
        {"step": step, "loss": loss, ROW_CHECKSUM: f"{rows}{step}", "samples_per_second": 10.0 * step}
        for step, loss in enumerate(losses, start=1)
    ]
    records.append({"step": last.pop("best", len(losses)), "valid/auc": 0.7, "test/auc": 0.75, **last})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "result.json").write_text(json.dumps({"outcome": "finished", "step": len(losses)}))
    return run


def test_losses_within_the_limit_hold(tmp_path: Path) -> None:
    run, reference = write_run(tmp_path / "a", [1.0, 0.5005, 0.3]), write_run(tmp_path / "b", [1.0, 0.5, 0.4])
    comparison = compare_losses(run, reference, limit=2e-3, first=2)
    assert comparison["holds"]
    assert comparison["max_difference_first"] == pytest.approx(1e-3)
    assert comparison["max_difference_all"] == pytest.approx(0.25)
    assert comparison["losses"] == {1: [1.0, 1.0], 3: [0.3, 0.4]}
    assert comparison["test/auc"] == [0.75, 0.75]
    assert not compare_losses(run, reference, limit=2e-3, first=3)["holds"]


def test_losses_of_other_rows_do_not_hold(tmp_path: Path) -> None:
    run, reference = write_run(tmp_path / "a", [1.0]), write_run(tmp_path / "b", [1.0], rows="b")
    comparison = compare_losses(run, reference, limit=1)
    assert not comparison["same_rows"]
    assert not comparison["holds"]


def test_a_run_without_steps_does_not_hold(tmp_path: Path) -> None:
    assert not compare_losses(tmp_path / "nothing", write_run(tmp_path / "b", [1.0]), limit=1)["holds"]


def test_test_auc_is_compared_with_evaluate(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [1.0, 0.5], best=1)
    comparison = compare_test_auc(run, {"results": [{"auc": 0.75}]})
    assert comparison["holds"]
    assert comparison["best_is_not_last"]
    assert not compare_test_auc(run, {"results": [{"auc": 0.7501}]})["holds"]


def test_a_training_is_stopped_after_a_step(tmp_path: Path) -> None:
    write_run(tmp_path / "prepared", [1.0, 0.9])
    run = tmp_path / "run"
    # The log must appear after the handler is set: without the handler, the signal ends Python.
    train = f"""
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
os.rename({str(tmp_path / "prepared")!r}, {str(run)!r})
signal.pause()
"""
    stopped = stop_after(run, 2, [sys.executable, "-c", train])
    assert (stopped["status"], stopped["holds"], stopped["step"]) == (130, True, 2)
    ended = stop_after(run, 3, [sys.executable, "-c", "raise SystemExit(4)"])
    assert (ended["status"], ended["holds"]) == (4, False)


def test_a_summary_has_documents_and_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "plain", [1.0, 0.5])
    (tmp_path / "turns.json").write_text('{"results": [], "details": []}')
    (tmp_path / "cut.json").write_text('{"results"')
    whole = summary(tmp_path, {"turns": {"status": "done", "seconds": 1.0}})
    assert whole["parts"]["turns"]["status"] == "done"
    assert whole["documents"]["cut"] == {"not_json": '{"results"'}
    assert whole["runs"]["plain"] == {**run_summary(tmp_path / "runs" / "plain")}
    assert whole["runs"]["plain"]["samples_per_second"] == 20
    assert whole["runs"]["plain"]["loss_is_finite"]


def test_results_have_checks_and_measurements() -> None:
    measured = {"name": "training of base", "value": 2.0, "peer_value": 1.0, "ratio": 2.0}
    documents = {
        "machine": {"machine": "16 cores", "versions": {"torch": "2.11.0"}},
        "tables": {"equal": 3, "cases": [{}] * 4},
        "plain": {"steps": 400, "first": 100, "max_difference_first": 1e-4, "limit": 1e-3, "holds": True},
        "turns": {"results": [measured], "details": [], "failures": []},
    }
    results = document({"parts": {}, "runs": {}, "documents": documents})
    assert results["machine"] == "16 cores"
    tables, plain, turns = results["results"]
    assert (tables["value"], tables["peer_value"], tables["holds"]) == (3, 4, False)
    assert (plain["ratio"], plain["holds"]) == (pytest.approx(0.1), True)
    assert turns == measured
