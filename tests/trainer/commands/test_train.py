"""`train`: the content of the run directory when the run has ended."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from asymdiffrec.trainer.metrics import METRICS


def test_files_of_a_run_directory(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [*range(5, 36, 5), 36]
    expected = {"epoch", "samples", "samples_per_second", "loss", "loss_main", "loss_aux", "loss_distil"}
    assert all(expected <= record.keys() for record in steps)
    assert all(0 < record["data_wait"] < 1 for record in steps)
    assert steps[-1]["samples"] == 36 * 256
    assert steps[-1]["loss_main"] < steps[0]["loss_main"]
    valid = [record for record in records if "valid/auc" in record]
    assert [record["step"] for record in valid] == [18, 36]
    assert all({f"valid/{metric}" for metric in METRICS} <= record.keys() for record in valid)
    (test,) = [record for record in records if "test/auc" in record]
    assert {f"test/{metric}" for metric in METRICS} <= test.keys()
    best = max(valid, key=lambda record: record["valid/auc"])
    assert test["step"] == best["step"]

    assert list((trained / "events").iterdir())
    plan = json.loads((trained / "plan.json").read_text())
    assert {"name", "num_embeddings", "embedding_dim", "sharding", "kernel", "ranks"} <= plan["tables"][0].keys()
    job = yaml.safe_load((trained / "job.yaml").read_text())
    assert job["train"]["batch_size"] == 256
    assert f"step-{best['step']}" in {folder.name for folder in (trained / "checkpoints").iterdir()}
