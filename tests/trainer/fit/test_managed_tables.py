"""Jobs with managed tables: training, resuming, evaluation and wrong settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asymdiffrec.embeddings.managed.ids import COUNTS
from tests.trainer.runs import records_without_times, stop_at

SETTINGS = [
    "train.batch_size=256",
    "train.epochs=2",
    "train.log_every=6",
    "tables.per_table={user_id: {collision: managed}, item_id: {collision: managed}, city: {collision: managed}}",
    *(f"fields.{name}.hash=true" for name in ("user_id", "item_id", "history")),
    *(
        f"fields.{name}.num_embeddings={rows}"
        for name, rows in {"user_id": 128, "item_id": 192, "history": 192, "city": 64}.items()
    ),
]


def test_a_resumed_run_is_equal_and_scores_as_in_its_test(
    clicks: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(run: Path, last_step: int | None, *more: str) -> int:
        stop_at(last_step, monkeypatch)
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        outcome = command("train", clicks / "job.yaml", "--run", run, *settings, *more)
        assert outcome.status in (0, 130), outcome.err
        return int(outcome.status)

    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert (train(whole, None), train(halves, 12), train(halves, None, "--resume")) == (0, 130, 0)
    undisturbed = records_without_times(whole)
    assert records_without_times(halves) == undisturbed  # digit for digit
    steps = [entry for entry in undisturbed if "loss" in entry]
    for table in ("user_id", "item_id", "city"):
        assert all(f"{table}/{name}" in entry for name in (*COUNTS, "ids") for entry in steps)
        assert steps[0][f"{table}/insertions"] > 0
    assert sum(entry["item_id/evictions"] for entry in steps) > 0
    assert steps[-1]["user_id/ids"] == 126  # all rows but the shared ones

    for setting, changed in (
        ("tables.managed={admit_after: 1}", "tables.managed.admit_after is 1, but"),
        ("tables.per_table={city: {collision: managed}}", 'tables.managed_tables is ["city"], but'),
    ):
        given = ["--set", "fields.city.num_embeddings=64", "--set", setting]
        outcome = command("train", clicks / "job.yaml", "--run", halves, "--resume", *given)
        assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome.err
        assert changed in outcome.err

    (tested,) = [entry for entry in undisturbed if "test/auc" in entry]
    (result,) = command("evaluate", halves, "--json").document["results"]
    assert result["auc"] == tested["test/auc"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["tables.per_table={user_id: {collision: managed}}"],
            "fields.user_id.hash: false is not possible with tables.per_table.user_id.collision: managed",
        ),
        (
            ["tables.per_table={city: {collision: managed}}"],
            "fields.city.num_embeddings: 10000 is not a multiple of 64, which a managed table needs; use for example "
            "10048",
        ),
        (
            ["tables.per_table={city: {collision: managed, sharding: data_parallel}}"],
            "tables.per_table.city: sharding: not allowed with collision: managed, which always uses sharding row_wise",
        ),
        (["tables.per_table={city: {collision: perfect}}"], "tables.per_table.city.collision: found 'perfect'"),
        (["tables.managed={admit_after: 0}"], "tables.managed.admit_after: found 0"),
        (["tables.managed={admit: 2}"], "tables.managed.admit: unknown key; did you mean admit_after?"),
    ],
)
def test_wrong_settings_are_an_error_of_one_line(
    clicks: Path, tmp_path: Path, command: Callable[..., Any], settings: list[str], message: str
) -> None:
    given = [part for setting in settings for part in ("--set", setting)]
    outcome = command("train", clicks / "job.yaml", "--run", tmp_path / "run", *given)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome.err
    assert message in outcome.err
