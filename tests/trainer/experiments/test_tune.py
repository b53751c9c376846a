"""What is searched, and what is chosen of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from asymdiffrec.trainer.experiments import tune
from asymdiffrec.trainer.experiments.tune import BASE, Candidate, canonical, choose, first_of, space_of
from asymdiffrec.trainer.job import read_job


def test_base_is_chosen_unless_another_is_better_by_more_than_chance() -> None:
    base = Candidate({"diffusion.method": "base"}, {0: 0.50, 1: 0.52})
    surely = Candidate({"diffusion.method": "augment"}, {0: 0.49, 1: 0.51})
    maybe = Candidate({"diffusion.method": "asymdiff"}, {0: 0.45, 1: 0.55})
    failed = Candidate({"diffusion.method": "asymdiff"}, {0: 0.40, 1: math.inf})
    assert choose(base, [base, maybe])[0] is base
    assert choose(base, [base, maybe, surely])[0] is surely
    assert choose(base, [base, failed])[0] is base
    assert "0.0100 below that of base with the job's settings, 0.5100" in choose(base, [base, surely])[1]


def test_settings_of_one_training_are_known_as_one(clicks: Path) -> None:
    job = read_job(clicks / "job.yaml")
    space = space_of(job)
    base, augment, asymdiff, gentle = first_of(space, job)
    assert base == {**asymdiff, **BASE}
    assert {name for name in asymdiff if asymdiff[name] != gentle[name]} >= {"diffusion.weights.distil"}
    assert asymdiff["diffusion.forward.time"] == {"law": "uniform", "low": 0.0, "high": 0.8}
    assert asymdiff["train.learning_rate"] == job.train.learning_rate
    other = {**gentle, **BASE}
    assert canonical(other, asymdiff) == base
    assert canonical({**augment, "diffusion.weights.recon": 0.3}, asymdiff) == augment
    assert canonical(gentle, asymdiff) == gentle


def test_fields_whose_ids_are_often_new_may_be_dropped_less(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = read_job(clicks / "job.yaml")
    assert not any(name.endswith(".drop") for name in space_of(job))
    monkeypatch.setattr(tune, "NEW", 0.0)
    assert space_of(job)["fields.user_id.drop"] == [0.0, 0.3, 1.0]


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_within_its_budget(clicks: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    options = (
        "--out",
        tmp_path / "out",
        "--set",
        "train.epochs=1",
        "--seeds",
        2,
        "--parallel",
        2,
        "--missing",
        "0,0.5",
    )
    outcome = command("tune", clicks / "job.yaml", "--budget", "20s", *options, "--json")
    assert outcome.status == 0, outcome.err
    document = outcome.document
    assert {one["settings"]["diffusion.method"] for one in document["finalists"]} >= {"base", "augment"}
    assert all("0" in one["log_loss"] for one in document["finalists"])
    assert json.loads((tmp_path / "out" / "tuning.json").read_text()) == document
    written = tmp_path / "out" / "job.yaml"
    assert written.read_text().startswith("# Chosen by asymdiffrec tune: ")
    chosen = yaml.safe_load(written.read_text())
    assert chosen["diffusion"]["method"] == document["chosen"]["diffusion.method"]
    assert chosen["train"]["validation"]["missing"] == [0.0, 0.5]
    assert chosen["train"]["seed"] == 0
    assert read_job(written).data.path == str(clicks)

    before = sorted(folder.name for folder in (tmp_path / "out" / "trials").iterdir())
    again = command("tune", clicks / "job.yaml", "--budget", "10s", *options, "--json").document
    assert again["trials"] >= 4
    assert set(before) <= {folder.name for folder in (tmp_path / "out" / "trials").iterdir()}
    changed = command("tune", clicks / "job.yaml", "--budget", "5s", *options, "--set", "train.batch_size=512")
    assert changed.status == 2
    assert "was made with train.batch_size 1024, not 512; choose another --out" in changed.err


def test_a_wrong_budget(clicks: Path, command: Callable[..., Any]) -> None:
    for text in ("soon", "0s", "5"):
        outcome = command("tune", clicks / "job.yaml", "--budget", text)
        assert outcome.status == 2
        assert "expected a time such as 90s, 30m or 2h" in outcome.err
