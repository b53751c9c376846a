"""The commands, as their user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml


def test_run_directory_holds_what_the_design_says(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [*range(5, 36, 5), 36]
    expected = {"epoch", "samples", "samples_per_second", "loss", "loss_main", "loss_aux", "loss_distil"}
    assert all(expected <= record.keys() for record in steps)
    assert all(0 < record["data_wait"] < 1 for record in steps)
    assert steps[-1]["samples"] == 36 * 256
    assert steps[-1]["loss_main"] < steps[0]["loss_main"]
    metrics = {"auc", "gauc", "log_loss", "normalized_entropy", "calibration"}
    valid = [record for record in records if "valid/auc" in record]
    assert [record["step"] for record in valid] == [18, 36]
    assert all({f"valid/{metric}" for metric in metrics} <= record.keys() for record in valid)
    (test,) = [record for record in records if "test/auc" in record]
    assert {f"test/{metric}" for metric in metrics} <= test.keys()
    best = max(valid, key=lambda record: record["valid/auc"])
    assert test["step"] == best["step"]

    assert list((trained / "events").iterdir())
    plan = json.loads((trained / "plan.json").read_text())
    assert {"name", "num_embeddings", "embedding_dim", "sharding", "kernel", "ranks"} <= plan["tables"][0].keys()
    job = yaml.safe_load((trained / "job.yaml").read_text())
    assert job["train"]["batch_size"] == 256
    assert f"step-{best['step']}" in {folder.name for folder in (trained / "checkpoints").iterdir()}


def test_evaluate_as_json(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--missing", "0,0.5", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["split"] == "test"
    assert [result["missing"] for result in document["results"]] == [0, 0.5]
    assert all(result["rows"] == 601 for result in document["results"])
    assert document["results"][0]["auc"] > document["results"][1]["auc"]
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert document["results"][0]["auc"] == pytest.approx(logged["test/auc"], abs=1e-6)


def test_evaluate_with_rounded_tables(trained: Path, command: Callable[..., Any]) -> None:
    exact, rounded, coarse = (
        command("evaluate", trained, "--json", *more).document
        for more in ([], ["--tables", "int8"], ["--tables", "int4"])
    )
    assert exact["tables"] is None
    assert coarse["tables"]["bytes"] < rounded["tables"]["bytes"]
    losses = [document["results"][0]["log_loss"] for document in (exact, rounded, coarse)]
    assert 0 < abs(losses[1] - losses[0]) < abs(losses[2] - losses[0]) < 0.1 * losses[0]
    shown = command("evaluate", trained, "--tables", "fp16")
    assert "MB as trained" in shown.err
    assert command("evaluate", trained, "--tables", "int3").status == 2


def test_evaluate_shows_a_table(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--missing", "0.3", "--split", "valid")
    assert outcome.status == 0
    assert "valid split, 601 rows" in outcome.out
    assert "30%" in outcome.out


def test_predict_scores_what_evaluate_judges(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    (file,) = (clicks / "test").glob("*.parquet")
    unlabelled = tmp_path / "in.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["label", "user"]), unlabelled, row_group_size=170)
    out = tmp_path / "out" / "scores.parquet"
    assert command("predict", trained, unlabelled, out).status == 0
    scored = pq.read_table(out)
    assert scored.drop_columns(["score"]).equals(pq.read_table(unlabelled))
    label = torch.tensor(pq.read_table(file)["label"].to_pylist())
    score = torch.tensor(scored["score"].to_pylist())
    assert ((score > 0) & (score < 1)).all()
    ahead = score[label == 1][:, None] - score[label == 0]
    auc = ((ahead > 0).double() + (ahead == 0) / 2).mean().item()
    document = command("evaluate", trained, "--json").document
    assert auc == pytest.approx(document["results"][0]["auc"], abs=1e-6)

    again = command("predict", trained, unlabelled, out)
    assert (again.status, "exists" in again.err) == (2, True)


def test_prepare_tells_the_ceiling_and_refuses_an_existing_folder(tmp_path: Path, command: Callable[..., Any]) -> None:
    outcome = command("prepare", "synthetic", tmp_path / "out", "--rows", 2000)
    assert outcome.status == 0
    ceiling = json.loads((tmp_path / "out" / "profile.json").read_text())["optimal_auc"]["observed"]
    assert f"{ceiling:.4f}" in outcome.out
    again = command("prepare", "synthetic", tmp_path / "out", "--rows", 2000)
    assert (again.status, again.err.count("\n")) == (2, 1)
    assert "exists" in again.err


def test_doctor_finds_this_environment_sound(command: Callable[..., Any]) -> None:
    outcome = command("doctor", "--json")
    assert outcome.status == 0, outcome.out
    assert outcome.document["sound"]
    assert len(outcome.document["checks"]) == 6


@pytest.mark.usefixtures("ray_cluster")
def test_many_files_are_predicted_side_by_side(
    exported: Path, clicks: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    rows = pq.read_table(clicks / "test")
    data, out, whole = tmp_path / "data", tmp_path / "out", tmp_path / "whole.parquet"
    data.mkdir()
    for number in range(3):
        pq.write_table(rows.slice(200 * number, 200), data / f"part-{number}.parquet", row_group_size=60)
    assert command("predict", exported, data, whole).status == 0
    outcome = command("predict", exported, data, out, "--parallel", 2, "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.document["rows"] == 600
    assert pq.read_table(out).equals(pq.read_table(whole))
    (out / "part-1.parquet").unlink()
    assert command("predict", exported, data, out, "--parallel", 2, "--json").document["rows"] == 200, "what is lacking"
    assert "is a file" in command("predict", exported, data, whole, "--parallel", 2).err
