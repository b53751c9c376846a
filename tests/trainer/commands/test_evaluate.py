"""`evaluate` with fields missing, and the outage drill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_scenarios_in_the_order_asked_for(trained: Path, command: Callable[..., Any]) -> None:
    options = ("--missing", "0,0.5", "--outage", "item", "--rates", "user_id=0.5", "--as-in-training")
    found = command("evaluate", trained, *options, "--json").document["results"]
    assert [(result["scenario"], result["missing"]) for result in found] == [
        ("0%", 0.0),
        ("50%", 0.5),
        ("item outage", None),
        ("user_id 50%", None),
        ("as in training", None),
    ]
    complete, half, *_ = found
    assert half["auc"] < complete["auc"]
    assert all(result["rows"] == 601 for result in found)


def test_drill_is_worst_first_and_sets_another_run_beside(trained: Path, command: Callable[..., Any]) -> None:
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


def test_rows_with_new_ids_are_counted_by_themselves(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--unseen", "user_id")
    assert outcome.status == 0
    assert "unseen user_id" in outcome.out
    assert "rows" in outcome.out


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
