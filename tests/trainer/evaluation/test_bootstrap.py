"""The bootstrap: equality with the metrics of an evaluation, and the coverage of its intervals."""

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

AUC = list(METRICS).index("auc")


def random_samples(rng: np.random.Generator, rows: int, users: int | None) -> Samples:
    return Samples(
        (rng.random(rows) < 0.4).astype(np.float32),
        rng.integers(1, 4, rows).astype(np.float32),
        rng.integers(0, users, rows) * 7 - 3 if users else None,
    )


def evaluation_metrics(logit: np.ndarray, samples: Samples, rows: np.ndarray) -> np.ndarray:
    """Return the metrics of an evaluation of these rows, NaN where undefined."""
    accumulator = MetricAccumulator(Path("nowhere"), 10**9)
    user = samples.user[rows] if samples.user is not None else None
    accumulator.update(logit[rows], samples.label[rows], samples.weight[rows], user)
    metrics = accumulator.compute()
    return np.array([np.nan if metrics[name] is None else metrics[name] for name in METRICS])


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), rows=st.integers(30, 80), users=st.sampled_from([None, 3, 9]))
def test_values_equal_those_of_an_evaluation(seed: int, rows: int, users: int | None) -> None:
    rng = np.random.default_rng(seed)
    samples = random_samples(rng, rows, users)
    by_seed = [
        ModelScores(rng.integers(-3, 4, (2, rows)).astype(np.float32), rng.random((2, rows)) < 0.8) for _ in range(2)
    ]
    comparison = compare({"one": by_seed}, samples, draws=3)
    for scores, values in zip(by_seed, comparison.values["one"], strict=True):
        for logit, counted, value in zip(scores.logits, scores.counted, values, strict=True):
            np.testing.assert_allclose(value, evaluation_metrics(logit, samples, np.flatnonzero(counted)), rtol=1e-6)


@pytest.mark.parametrize("max_groups", [10**6, 5])
def test_replicate_counts_a_user_as_often_as_it_was_drawn(max_groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replicate equals an evaluation in which each sample's weight is multiplied by the draws of its user."""
    monkeypatch.setattr(bootstrap, "MAX_USER_GROUPS", max_groups)
    rng = np.random.default_rng(4)
    samples = random_samples(rng, 60, 8)
    assert samples.user is not None
    logits = rng.normal(size=(1, 60)).astype(np.float32)
    everything = np.ones((1, 60), bool)
    draws_by_sample: list[np.ndarray] = []
    original = bootstrap._metrics

    def record_draws(logit, samples, counted, user, group, times):
        draws_by_sample.append(times[1:, group[user]])
        return original(logit, samples, counted, user, group, times)

    monkeypatch.setattr(bootstrap, "_metrics", record_draws)
    comparison = compare({"one": [ModelScores(logits, everything)]}, samples, draws=4)
    (drawn,) = draws_by_sample
    assert len(np.unique(drawn[:, np.argsort(samples.user)], axis=1).T) > 1
    for replicate, times in zip(comparison.replicates["one"][0].T, drawn, strict=True):
        assert all(len(set(times[samples.user == user])) == 1 for user in np.unique(samples.user))
        weighted = Samples(samples.label, samples.weight * times, samples.user)
        expected = evaluation_metrics(logits[0], weighted, np.arange(60))
        np.testing.assert_allclose(replicate, expected, rtol=1e-6)


def test_a_better_model_is_sure_and_an_equal_one_is_not() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(3000) < 0.5).astype(np.float32)
    samples = Samples(label, np.ones(3000, np.float32), rng.integers(0, 300, 3000))

    def random_scores(strength: float) -> ModelScores:
        noise = rng.normal(size=(2, 3000))
        return ModelScores((strength * (label - 0.5) + noise).astype(np.float32), np.ones((2, 3000), bool))

    models = {
        name: [random_scores(strength) for _ in range(4)]
        for name, strength in (("weak", 1), ("equal", 1), ("strong", 1.5))
    }
    differences = compare(models, samples, draws=300).differences("weak")
    for scenario in range(2):
        assert not differences["equal"][scenario][AUC].is_sure
        better = differences["strong"][scenario][AUC]
        assert better.low > 0
        assert better.low < better.value < better.high
    assert differences.keys() == {"equal", "strong"}


def test_intervals_hold_together_with_their_probability() -> None:
    """All models are equal: in about 95 of 100 data sets all intervals contain 0."""
    missed = 0
    for trial in range(120):
        rng = np.random.default_rng(trial)
        samples = Samples((rng.random(250) < 0.5).astype(np.float32), np.ones(250, np.float32), None)
        models = {
            name: [ModelScores(rng.normal(size=(2, 250)).astype(np.float32), np.ones((2, 250), bool)) for _ in range(6)]
            for name in "abc"
        }
        differences = compare(models, samples, draws=120, seed=trial).differences("a")
        missed += any(cells[AUC].is_sure for by_scenario in differences.values() for cells in by_scenario)
    assert missed <= 0.13 * 120
