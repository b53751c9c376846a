"""`compare` on a small job: its results, what a second start does, failed trainings, and wrong options."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.methods import AsymmetricDiffusion
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.experiments import running
from asymdiffrec.trainer.job import Job

SMALL = ("--set", "train.batch_size=256", "--set", "train.epochs=1", "--draws", "50", "--missing", "0,0.5")
THIS = "tests.trainer.commands.test_compare"


def random_rival(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """Return random logits."""
    return np.random.default_rng(seed).normal(size=(len(scenarios), statistics.rows["test"]))


def wrong_shape(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """Return logits of a wrong shape."""
    return np.zeros(3)


class Broken(AsymmetricDiffusion):
    """A method that cannot be trained."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("broken on purpose")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared") / "out"


@pytest.fixture
def compare(
    command: Callable[..., Any], clicks: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run `compare` on the small job, in the folder that all tests of this file share."""
    monkeypatch.chdir(Path(__file__).parents[3])

    def run(*options: object) -> Any:
        return command("compare", clicks / "job.yaml", "--out", folder, *SMALL, *options)

    return run


def test_document_page_and_picture(compare: Callable[..., Any], command: Callable[..., Any], folder: Path) -> None:
    outcome = compare("--variants", f"base,augment,{THIS}:random_rival", "--seeds", 2, "--outage", "user", "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.document
    assert document["variants"] == ["base", "augment", "random_rival"]
    assert document["failed"] == {}
    assert [scenario["scenario"] for scenario in document["scenarios"]] == ["0%", "50%", "user outage"]
    assert document == json.loads((folder / "comparison.json").read_text())
    assert "<svg" in (folder / "comparison.html").read_text()
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")

    results = {(result["variant"], result["scenario"]): result for result in document["results"]}
    evaluated = command("evaluate", folder / "augment" / "seed-1" / "run", "--missing", "0.5", "--json").document
    by_seed = results["augment", "50%"]["by_seed"]
    assert by_seed["auc"][1] == pytest.approx(evaluated["results"][0]["auc"], abs=1e-6)
    assert by_seed["gauc"][1] == pytest.approx(evaluated["results"][0]["gauc"], abs=1e-6)
    assert results["random_rival", "0%"]["auc"] == pytest.approx(0.5, abs=0.05)

    differences = {(row["variant"], row["scenario"], row["metric"]): row for row in document["differences"]}
    random = differences["random_rival", "0%", "auc"]
    assert random["sure"]
    assert random["low"] < random["difference"] < random["high"] < 0
    assert random["difference"] == pytest.approx(results["random_rival", "0%"]["auc"] - results["base", "0%"]["auc"])


def test_second_start_does_only_what_is_missing(
    compare: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    original = running.train_job

    def train(*arguments: Any) -> Any:
        trained.append(str(arguments[2].path))
        return original(*arguments)

    monkeypatch.setattr(running, "train_job", train)
    outcome = compare("--variants", "base,dropout", "--seeds", 1, "--outage", "user")
    assert outcome.status == 0, outcome.err
    assert trained == [str(folder / "dropout" / "seed-0" / "run")]
    outcome = compare("--variants", "base,dropout", "--seeds", 1, "--outage", "item")
    assert outcome.status == 0, outcome.err
    assert len(trained) == 1
    assert "item outage" in outcome.out
    assert "1/2  base, seed 0: AUC" in outcome.err


def test_failed_variants_are_reported_and_the_others_go_on(compare: Callable[..., Any], folder: Path) -> None:
    variants = ("--variants", f"{THIS}:Broken,base,{THIS}:wrong_shape,dropout", "--seeds", 1)
    outcome = compare(*variants, "--json")
    assert outcome.status == 1
    document = outcome.document
    assert document["variants"] == ["base", "dropout"]
    assert document["reference"] == "base", "the first variant that did not fail"
    assert document["failed"]["broken, seed 0"] == "RuntimeError: broken on purpose"
    assert "returned logits [3]" in document["failed"]["wrong_shape, seed 0"]
    assert {result["variant"] for result in document["results"]} == {"base", "dropout"}
    assert 'raise RuntimeError("broken on purpose")' in (folder / "broken" / "seed-0" / "failed.txt").read_text()

    message = "broken, seed 0 failed, and its variant is left out: RuntimeError: broken on purpose"
    outcome = compare(*variants)
    assert outcome.status == 1
    assert message in outcome.err
    assert "dropout" in outcome.out
    assert message in (folder / "comparison.html").read_text()

    outcome = compare("--variants", f"{THIS}:Broken", "--seeds", 1)
    assert outcome.status == 1
    assert "every variant failed: broken, seed 0: RuntimeError: broken on purpose" in outcome.err


def test_training_that_diverges_is_evaluated_at_its_best_step(compare: Callable[..., Any]) -> None:
    wild = (
        *("train.epochs=3", "train.learning_rate=2", "train.schedule.warmup_steps=54", "train.max_loss=3"),
        *("train.validation.every=2", "train.validation.patience=50"),
    )
    options = [part for override in wild for part in ("--define", f"wild:{override}")]
    outcome = compare("--variants", "base,wild", "--seeds", 1, *options)
    assert outcome.status == 0, outcome.err
    assert "wild, seed 0 diverged, and is evaluated at its best step before that: " in outcome.err

    options = [part for override in (*wild, "train.max_loss=0.1") for part in ("--define", f"wilder:{override}")]
    outcome = compare("--variants", "base,wilder", "--seeds", 1, *options, "--json")
    assert outcome.status == 0, outcome.err
    aucs = [result["auc"] for result in outcome.document["results"] if result["variant"] == "wilder"]
    assert aucs == [0.5, 0.5]
    assert "as a constant, because it has no checkpoint" in outcome.document["diverged"]["wilder, seed 0"]


@pytest.mark.usefixtures("ray_cluster")
def test_parallel_trainings_under_ray(compare: Callable[..., Any]) -> None:
    light = ("--define", "light:tables.embedding_dim=8")
    outcome = compare("--variants", f"base,light,{THIS}:wrong_shape", *light, "--seeds", 1, "--parallel", 2)
    assert outcome.status == 1
    assert "light" in outcome.out
    assert "returned logits [3]" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variants", "base,augmented"), "--variants: augmented is unknown; expected one of base, indicators"),
        (("--variants", "base,base"), "--variants: base appears twice"),
        (("--variants", "base,nowhere.at:all"), "cannot import nowhere"),
        (("--define", "light"), "--define light: expected NAME:PATH=VALUE"),
        (("--define", "huge:train.batch_size=1000000", "--variants", "base,huge"), "fewer than one batch of 1000000"),
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


def test_list_describes_the_built_in_variants(command: Callable[..., Any], clicks: Path) -> None:
    outcome = command("compare", clicks / "job.yaml", "--list")
    assert outcome.status == 0
    assert "DiffRec" in outcome.out


def test_progressive_trains_on_the_rows_before_each_period(
    command: Callable[..., Any], clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    options = (clicks / "job.yaml", "--out", tmp_path / "out", "--variants", "base,augment", "--seeds", 1, *SMALL)
    outcome = command("compare", *options, "--progressive", 2, "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.document
    assert [period["period"] for period in document["periods"]] == [1, 2]
    assert document["rows"] == sum(period["rows"] for period in document["periods"])
    whole = next(row for row in document["results"] if (row["variant"], row["scenario"]) == ("augment", "0%"))
    by_period = [row for period in document["periods"] for row in period["results"] if row["variant"] == "augment"]
    aucs = [row["auc"] for row in by_period if row["scenario"] == "0%"]
    sizes = [period["rows"] for period in document["periods"]]
    assert whole["auc"] == pytest.approx(np.average(aucs, weights=sizes))
    assert "AUC by period" in command("compare", *options, "--progressive", 2).out
    without_time = command("compare", *options, "--progressive", 2, "--set", "data.time=null")
    assert (without_time.status, "data.time is not set" in without_time.err) == (2, True)
