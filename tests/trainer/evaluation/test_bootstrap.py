"""The bootstrap against the metrics of an evaluation, a plain loop, and the coverage that it claims."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.trainer.evaluation import bootstrap
from asymdiffrec.trainer.evaluation.accumulator import MetricAccumulator
from asymdiffrec.trainer.evaluation.bootstrap import ModelScores, Samples, compare
from asymdiffrec.trainer.metrics import METRICS


def samples(rng: np.random.Generator, rows: int, users: int | None) -> Samples:
    return Samples(
        (rng.random(rows) < 0.4).astype(np.float32),
        rng.integers(1, 4, rows).astype(np.float32),
        rng.integers(0, users, rows) * 7 - 3 if users else None,
    )


def of_metrics(logit: np.ndarray, told: Samples, rows: np.ndarray) -> np.ndarray:
    metrics = MetricAccumulator(Path("nowhere"), 10**9)
    user = told.user[rows] if told.user is not None else None
    metrics.update(logit[rows], told.label[rows], told.weight[rows], user)
    found = metrics.compute()
    return np.array([np.nan if found[name] is None else found[name] for name in METRICS])


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), rows=st.integers(30, 80), users=st.sampled_from([None, 3, 9]))
def test_values_are_those_of_an_evaluation(seed: int, rows: int, users: int | None) -> None:
    rng = np.random.default_rng(seed)
    told = samples(rng, rows, users)
    runs = [
        ModelScores(rng.integers(-3, 4, (2, rows)).astype(np.float32), rng.random((2, rows)) < 0.8) for _ in range(2)
    ]
    found = compare({"one": runs}, told, draws=3)
    for run, values in zip(runs, found.values["one"], strict=True):
        for logit, counts, value in zip(run.logits, run.counted, values, strict=True):
            np.testing.assert_allclose(value, of_metrics(logit, told, np.flatnonzero(counts)), rtol=1e-6)


@pytest.mark.parametrize("groups", [10**6, 5])
def test_a_replicate_counts_a_user_as_often_as_it_was_drawn(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws are read off the replicates of a sum, that of the weights, and taken as weights of an evaluation."""
    monkeypatch.setattr(bootstrap, "MAX_USER_GROUPS", groups)
    rng = np.random.default_rng(4)
    told = samples(rng, 60, 8)
    logits = rng.normal(size=(1, 60)).astype(np.float32)
    everything = np.ones((1, 60), bool)
    drawn: list[np.ndarray] = []
    original = bootstrap._metrics

    def spy(logit, told, counts, user, group, times):
        drawn.append(times[1:, group[user]])
        return original(logit, told, counts, user, group, times)

    monkeypatch.setattr(bootstrap, "_metrics", spy)
    found = compare({"one": [ModelScores(logits, everything)]}, told, draws=4)
    assert len(np.unique(drawn[0][:, np.argsort(told.user)], axis=1).T) > 1
    for replicate, times in zip(found.replicates["one"][0].T, drawn[0], strict=True):
        assert all(len(set(times[told.user == user])) == 1 for user in np.unique(told.user))
        weighted = Samples(told.label, told.weight * times, told.user)
        expected = of_metrics(logits[0], weighted, np.arange(60))
        np.testing.assert_allclose(replicate, expected, rtol=1e-6)


def test_a_model_that_is_better_is_found_and_one_that_is_alike_is_not() -> None:
    rng = np.random.default_rng(0)
    told = Samples((rng.random(3000) < 0.5).astype(np.float32), np.ones(3000, np.float32), rng.integers(0, 300, 3000))

    def run(strength: float) -> ModelScores:
        noise = rng.normal(size=(2, 3000))
        return ModelScores((strength * (told.label - 0.5) + noise).astype(np.float32), np.ones((2, 3000), bool))

    models = {
        name: [run(strength) for _ in range(4)] for name, strength in (("weak", 1), ("alike", 1), ("strong", 1.5))
    }
    found = compare(models, told, draws=300).differences("weak")
    auc = list(METRICS).index("auc")
    for scenario in range(2):
        assert not found["alike"][scenario][auc].is_sure
        better = found["strong"][scenario][auc]
        assert better.low > 0
        assert better.low < better.value < better.high
    assert found.keys() == {"alike", "strong"}


def test_intervals_hold_together_as_often_as_they_say() -> None:
    """Of models that are all alike, over many data sets: in about 95 of 100 no interval leaves out 0."""
    missed = 0
    for trial in range(120):
        rng = np.random.default_rng(trial)
        told = Samples((rng.random(250) < 0.5).astype(np.float32), np.ones(250, np.float32), None)
        models = {
            name: [ModelScores(rng.normal(size=(2, 250)).astype(np.float32), np.ones((2, 250), bool)) for _ in range(6)]
            for name in "abc"
        }
        found = compare(models, told, draws=120, seed=trial).differences("a")
        missed += any(cell[list(METRICS).index("auc")].is_sure for rows in found.values() for cell in rows)
    assert missed <= 0.13 * 120
