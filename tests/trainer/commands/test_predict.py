"""`predict`: scores of a run and of an export, for one file and for many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch


def test_scores_have_the_auc_that_evaluate_reports(
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


@pytest.mark.usefixtures("ray_cluster")
def test_parallel_prediction_of_many_files(
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
    assert command("predict", exported, data, out, "--parallel", 2, "--json").document["rows"] == 200, (
        "only the missing file is scored again"
    )
    assert "is a file" in command("predict", exported, data, whole, "--parallel", 2).err
