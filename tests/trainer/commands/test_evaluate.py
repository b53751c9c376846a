"""`evaluate`: its document and tables, scenarios, the outage drill, and quantised tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_json_document_equals_the_metrics_of_the_training(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--missing", "0,0.5", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["split"] == "test"
    assert [result["missing"] for result in document["results"]] == [0, 0.5]
    assert all(result["rows"] == 601 for result in document["results"])
    assert document["results"][0]["auc"] > document["results"][1]["auc"]
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert document["results"][0]["auc"] == pytest.approx(logged["test/auc"], abs=1e-6)


def test_table_on_a_terminal(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--missing", "0.3", "--split", "valid")
    assert outcome.status == 0
    assert "valid split, 601 rows" in outcome.out
    assert "30%" in outcome.out


def test_scenarios_are_in_the_order_of_the_options(trained: Path, command: Callable[..., Any]) -> None:
    options = ("--missing", "0,0.5", "--outage", "item", "--rates", "user_id=0.5", "--as-in-training")
    results = command("evaluate", trained, *options, "--json").document["results"]
    assert [(result["scenario"], result["missing"]) for result in results] == [
        ("0%", 0.0),
        ("50%", 0.5),
        ("item outage", None),
        ("user_id 50%", None),
        ("as in training", None),
    ]
    complete, half, *_ = results
    assert half["auc"] < complete["auc"]
    assert all(result["rows"] == 601 for result in results)


def test_drill_lists_the_largest_loss_first_beside_a_second_run(trained: Path, command: Callable[..., Any]) -> None:
    document = command("evaluate", trained, "--drill", "--against", trained, "--json").document
    complete, *rest = document["results"]
    assert not rest
    lost = [row["auc_lost"] for row in document["drill"]]
    assert lost == sorted(lost, reverse=True)
    assert all(row["auc"] == pytest.approx(complete["auc"] - row["auc_lost"]) for row in document["drill"])
    assert {"user", "item", "user_id"} <= {row["outage"] for row in document["drill"]}
    assert document["against"]["drill"] == document["drill"]
    (alone,) = command("evaluate", trained, "--missing", "0", "--outage", "user", "--json").document["results"][1:]
    assert alone["auc"] == next(row["auc"] for row in document["drill"] if row["outage"] == "user")
    shown = command("evaluate", trained, "--drill", "--against", trained).out
    assert "AUC lost" in shown
    assert "second run" in shown


def test_unseen_ids_have_their_own_number_of_rows(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--unseen", "user_id")
    assert outcome.status == 0
    assert "unseen user_id" in outcome.out
    assert "rows" in outcome.out


def test_quantised_tables(trained: Path, command: Callable[..., Any]) -> None:
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--outage", "nobody"), "nobody: neither a group nor a field; groups and fields are"),
        (("--rates", "user_id"), "--rates user_id: expected FIELD=SHARE"),
        (("--rates", "user_id=2"), "--rates user_id=2: expected FIELD=SHARE"),
        (("--drill", "--missing", "0.5"), "--drill: leave out --missing, --outage"),
        (("--against", "elsewhere"), "--against RUN: needs --drill"),
        (("--drill", "--against", "elsewhere"), "elsewhere: not a run directory"),
    ],
)
def test_wrong_options(trained: Path, command: Callable[..., Any], options: tuple[str, ...], message: str) -> None:
    outcome = command("evaluate", trained, *options)
    assert outcome.status == 2
    assert message in outcome.err
