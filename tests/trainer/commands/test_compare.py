"""`compare` on a small job: what it finds, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.experiments import compare as comparison
from asymdiffrec.trainer.job import Job

SMALL = ("--set", "train.batch_size=256", "--set", "train.epochs=1", "--draws", "50", "--missing", "0,0.5")
THIS = "tests.trainer.commands.test_compare"


def by_chance(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """A rival that knows nothing."""
    return np.random.default_rng(seed).normal(size=(len(scenarios), statistics.rows["test"]))


def of_wrong_shape(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    return np.zeros(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared") / "out"


@pytest.fixture
def compare(
    command: Callable[..., Any], clicks: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    monkeypatch.chdir(Path(__file__).parents[3])

    def run(*options: object) -> Any:
        return command("compare", clicks / "job.yaml", "--out", folder, *SMALL, *options)

    return run


def test_a_comparison_and_what_it_leaves(
    compare: Callable[..., Any], command: Callable[..., Any], folder: Path
) -> None:
    outcome = compare("--variants", f"base,augment,{THIS}:by_chance", "--seeds", 2, "--outage", "user", "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.document
    assert document["variants"] == ["base", "augment", "by_chance"]
    assert [one["scenario"] for one in document["scenarios"]] == ["0%", "50%", "user outage"]
    assert document == json.loads((folder / "comparison.json").read_text())
    assert "<svg" in (folder / "comparison.html").read_text()
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")

    results = {(one["variant"], one["scenario"]): one for one in document["results"]}
    evaluated = command("evaluate", folder / "augment" / "seed-1" / "run", "--missing", "0.5", "--json").document
    assert results["augment", "50%"]["by_seed"]["auc"][1] == pytest.approx(evaluated["results"][0]["auc"], abs=1e-6)
    assert results["augment", "50%"]["by_seed"]["gauc"][1] == pytest.approx(evaluated["results"][0]["gauc"], abs=1e-6)
    assert results["by_chance", "0%"]["auc"] == pytest.approx(0.5, abs=0.05)

    differences = {(one["variant"], one["scenario"], one["metric"]): one for one in document["differences"]}
    chance = differences["by_chance", "0%", "auc"]
    assert chance["sure"]
    assert chance["low"] < chance["difference"] < chance["high"] < 0
    assert chance["difference"] == pytest.approx(results["by_chance", "0%"]["auc"] - results["base", "0%"]["auc"])


def test_it_goes_on_where_it_stopped(
    compare: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    original = comparison.train_job

    def counted(*arguments: Any) -> Any:
        trained.append(str(arguments[2].path))
        return original(*arguments)

    monkeypatch.setattr(comparison, "train_job", counted)
    outcome = compare("--variants", "base,dropout", "--seeds", 1, "--outage", "user")
    assert outcome.status == 0, outcome.err
    assert trained == [str(folder / "dropout" / "seed-0" / "run")]
    outcome = compare("--variants", "base,dropout", "--seeds", 1, "--outage", "item")
    assert outcome.status == 0, outcome.err
    assert len(trained) == 1
    assert "item outage" in outcome.out
    assert "1/2  base, seed 0: AUC" in outcome.err


def test_a_training_that_diverges_is_judged_at_its_best_step(compare: Callable[..., Any]) -> None:
    wild = (
        *("train.epochs=3", "train.learning_rate=2", "train.schedule.warmup_steps=54", "train.max_loss=3"),
        *("train.validation.every=2", "train.validation.patience=50"),
    )
    options = [part for setting in wild for part in ("--define", f"wild:{setting}")]
    outcome = compare("--variants", "base,wild", "--seeds", 1, *options)
    assert outcome.status == 0, outcome.err
    assert "wild, seed 0 diverged, and is judged at its best step before that: the loss of step" in outcome.err

    options = [part for setting in (*wild, "train.max_loss=0.1") for part in ("--define", f"wilder:{setting}")]
    outcome = compare("--variants", "base,wilder", "--seeds", 1, *options, "--json")
    assert outcome.status == 0, outcome.err
    aucs = [one["auc"] for one in outcome.document["results"] if one["variant"] == "wilder"]
    assert aucs == [0.5, 0.5]
    assert "as a constant, for it had no checkpoint" in outcome.document["diverged"]["wilder, seed 0"]


@pytest.mark.usefixtures("ray_cluster")
def test_side_by_side_under_ray(compare: Callable[..., Any]) -> None:
    outcome = compare(
        "--variants", "base,light", "--define", "light:tables.embedding_dim=8", "--seeds", 1, "--parallel", 2
    )
    assert outcome.status == 0, outcome.err
    assert "light" in outcome.out
    outcome = compare("--variants", f"base,{THIS}:of_wrong_shape", "--seeds", 1, "--parallel", 2)
    assert outcome.status == 2
    assert "gave [3] scores" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variants", "base,augmented"), "--variants: augmented is unknown; there are base, indicators"),
        (("--variants", "base,base"), "--variants: base is there twice"),
        (("--variants", "base,nowhere.at:all"), "cannot import nowhere"),
        (("--define", "light"), "--define light: expected NAME:PATH=VALUE"),
        (
            ("--variants", "base", "--set", "train.learning_rate=0.5"),
            "was made with train.learning_rate 0.001, not 0.5",
        ),
        (("--missing", "2"), "--missing 2: expected numbers in [0, 1]"),
        (("--outage", "nobody"), "nobody: neither a group nor a field"),
    ],
)
def test_wrong_options(compare: Callable[..., Any], options: tuple[str, ...], message: str) -> None:
    outcome = compare("--seeds", 1, *options)
    assert outcome.status == 2
    assert message in outcome.err


def test_the_list_says_what_each_is(command: Callable[..., Any], clicks: Path) -> None:
    outcome = command("compare", clicks / "job.yaml", "--list")
    assert outcome.status == 0
    assert "DiffRec" in outcome.out


def test_periods_in_order_of_time(
    command: Callable[..., Any], clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    options = (clicks / "job.yaml", "--out", tmp_path / "out", "--variants", "base,augment", "--seeds", 1, *SMALL)
    outcome = command("compare", *options, "--progressive", 2, "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.document
    assert [period["period"] for period in document["periods"]] == [1, 2]
    assert document["rows"] == sum(period["rows"] for period in document["periods"])
    whole = next(one for one in document["results"] if (one["variant"], one["scenario"]) == ("augment", "0%"))
    parts = [one for period in document["periods"] for one in period["results"] if one["variant"] == "augment"]
    aucs = [one["auc"] for one in parts if one["scenario"] == "0%"]
    sizes = [period["rows"] for period in document["periods"]]
    assert whole["auc"] == pytest.approx(np.average(aucs, weights=sizes))
    assert "AUC period by period" in command("compare", *options, "--progressive", 2).out
    timeless = command("compare", *options, "--progressive", 2, "--set", "data.time=null")
    assert (timeless.status, "data.time: names no column" in timeless.err) == (2, True)
