"""The search space of `tune`, the choice among finalists, and a whole search."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from asymdiffrec.trainer.experiments import search_space
from asymdiffrec.trainer.experiments.search_space import METHOD, canonical, first_candidates, make_search_space
from asymdiffrec.trainer.experiments.tune import Candidate, choose
from asymdiffrec.trainer.job import read_job


def test_base_is_chosen_unless_another_is_better_by_more_than_chance() -> None:
    base = Candidate({METHOD: "base"}, {0: 0.50, 1: 0.52})
    sure = Candidate({METHOD: "augment"}, {0: 0.49, 1: 0.51})
    unsure = Candidate({METHOD: "asymdiff"}, {0: 0.45, 1: 0.55})
    failed = Candidate({METHOD: "asymdiff"}, {0: 0.40, 1: math.inf})
    assert choose(base, [base, unsure])[0] is base
    assert choose(base, [base, unsure, sure])[0] is sure
    assert choose(base, [base, failed])[0] is base
    assert "0.0100 below the log loss of base with the job's values, 0.5100" in choose(base, [base, sure])[1]


def test_candidates_that_train_the_same_model_are_equal(clicks: Path) -> None:
    job = read_job(clicks / "job.yaml")
    space = make_search_space(job)
    base, augment, asymdiff, drops_less = first_candidates(space, job)
    assert base == {**asymdiff, METHOD: "base"}
    assert {path for path in asymdiff if asymdiff[path] != drops_less[path]} >= {"diffusion.weights.distil"}
    assert asymdiff["diffusion.forward.time"] == {"law": "uniform", "low": 0.0, "high": 0.8}
    assert asymdiff["train.learning_rate"] == job.train.learning_rate
    assert canonical({**drops_less, METHOD: "base"}, asymdiff) == base
    assert canonical({**augment, "diffusion.weights.recon": 0.3}, asymdiff) == augment
    assert canonical(drops_less, asymdiff) == drops_less


def test_drop_factors_are_searched_for_fields_with_unseen_ids(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = read_job(clicks / "job.yaml")
    assert not any(path.endswith(".drop") for path in make_search_space(job))
    monkeypatch.setattr(search_space, "MIN_UNSEEN_SHARE", 0.0)
    assert make_search_space(job)["fields.user_id.drop"] == [0.0, 0.3, 1.0]


@pytest.mark.usefixtures("ray_cluster")
def test_search_within_its_budget(clicks: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    options = ("--out", out, "--set", "train.epochs=1", "--seeds", 2, "--parallel", 2, "--missing", "0,0.5")
    outcome = command("tune", clicks / "job.yaml", "--budget", "20s", *options, "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.document
    assert {finalist["overrides"][METHOD] for finalist in document["finalists"]} >= {"base", "augment"}
    assert all("0" in finalist["log_loss"] for finalist in document["finalists"])
    assert json.loads((out / "tuning.json").read_text()) == document
    chosen_file = out / "job.yaml"
    assert chosen_file.read_text().startswith("# Chosen by asymdiffrec tune: ")
    chosen = yaml.safe_load(chosen_file.read_text())
    assert chosen["diffusion"]["method"] == document["chosen"][METHOD]
    assert chosen["train"]["validation"]["missing"] == [0.0, 0.5]
    assert chosen["train"]["seed"] == 0
    assert read_job(chosen_file).data.path == str(clicks)

    before = {folder.name for folder in (out / "trials").iterdir()}
    again = command("tune", clicks / "job.yaml", "--budget", "10s", *options, "--json").document
    assert again["trials"] >= 4
    assert before <= {folder.name for folder in (out / "trials").iterdir()}
    changed = command("tune", clicks / "job.yaml", "--budget", "5s", *options, "--set", "train.batch_size=512")
    assert changed.status == 2
    assert "was made with train.batch_size 1024, not 512; choose another --out" in changed.err


@pytest.mark.parametrize("text", ["soon", "0s", "5"])
def test_wrong_budget(clicks: Path, command: Callable[..., Any], text: str) -> None:
    outcome = command("tune", clicks / "job.yaml", "--budget", text)
    assert outcome.status == 2
    assert "expected a time such as 90s, 30m or 2h" in outcome.err
