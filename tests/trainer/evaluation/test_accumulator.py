"""Metrics of an evaluation compared with scikit-learn, spilling to disk, and peak memory."""

from __future__ import annotations

import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation import accumulator
from asymdiffrec.trainer.evaluation.accumulator import PEAK_BYTES_PER_ROW, MetricAccumulator, rows_in_memory
from asymdiffrec.trainer.evaluation.sorted_runs import ROW, merge, slices

LOGITS = st.one_of(st.integers(-3, 3).map(float), st.just(-0.0), st.floats(-9, 9, width=32))
WEIGHTS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.125, 8, width=32))
USERS = st.sampled_from([-(2**63), -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1])
SAMPLES = st.lists(st.tuples(LOGITS, st.booleans(), WEIGHTS, USERS), max_size=60)


def columns(samples: list[tuple]) -> list[np.ndarray]:
    """Return logit, label, weight and user of the samples."""
    dtypes = (np.float32, np.int64, np.float32, np.int64)
    return [np.array([sample[i] for sample in samples], dtype) for i, dtype in enumerate(dtypes)]


def metrics_of(folder: Path, limit: int, *portions: list[np.ndarray]) -> dict:
    """Return the metrics of samples that are added in portions."""
    accumulator = MetricAccumulator(folder, limit)
    for portion in portions:
        accumulator.update(*portion)
    return accumulator.compute()


def close(expected: dict) -> dict:
    """Return the expected metrics, to be compared up to rounding."""
    return {
        key: value if value is None else pytest.approx(value, rel=1e-12, abs=1e-12) for key, value in expected.items()
    }


def reference(logit: np.ndarray, label: np.ndarray, weight: np.ndarray, user: np.ndarray) -> dict:
    """Return the metrics, computed by scikit-learn and a loop over the users."""
    weight = weight.astype(np.float64)

    def auc(rows: np.ndarray) -> float | None:
        rows = rows & (weight > 0)
        both = len(set(label[rows])) == 2
        return roc_auc_score(label[rows], logit[rows], sample_weight=weight[rows]) if both else None

    def loss(probability: np.ndarray) -> float:
        return log_loss(label, probability, sample_weight=weight, labels=[0, 1])

    everyone = auc(np.full(len(logit), True))
    users = [user == u for u in set(user)]
    counted = [(auc(rows), weight[rows].sum()) for rows in users if auc(rows) is not None]
    probability = 1 / (1 + np.exp(-logit.astype(np.float64)))
    total, positive = weight.sum(), weight @ label
    return {
        "rows": len(logit),
        "auc": everyone,
        "gauc": np.average([area for area, _ in counted], weights=[total for _, total in counted]) if counted else None,
        "gauc_users": len(counted),
        "gauc_users_left_out": len(users) - len(counted),
        "log_loss": loss(probability) if total else None,
        "normalized_entropy": loss(probability) / loss(np.full(len(logit), positive / total))
        if everyone is not None
        else None,
        "calibration": weight @ probability / positive if positive else None,
    }


@given(SAMPLES, st.integers(1, 30), st.data())
@settings(deadline=None)
def test_equal_to_scikit_learn_in_any_order_and_portions_and_spilled(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple], limit: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "spill"
    expected = reference(*columns(samples))
    assert metrics_of(folder, 1000, columns(samples)) == close(expected)
    samples = data.draw(st.permutations(samples))
    ends = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=20)))
    portions = [columns(samples[i:j]) for i, j in zip([0, *ends], [*ends, len(samples)], strict=True)]
    assert metrics_of(folder, limit, *portions) == close(expected)


def random_samples(rng: np.random.Generator, rows: int, users: int) -> list[np.ndarray]:
    logit = rng.normal(size=rows).astype(np.float32).round(2)
    label = rng.random(rows) < 1 / (1 + np.exp(-logit))
    return [logit, label, rng.random(rows, np.float32), rng.integers(users, size=rows) ** 3]


@pytest.mark.parametrize("users", [1, 10, 20_000])  # one user in many slices, and many users in one slice
def test_equal_to_scikit_learn_on_many_slices(tmp_path: Path, users: int) -> None:
    samples = random_samples(np.random.default_rng(users), 50_000, users)
    portions = [[column[i : i + 700] for column in samples] for i in range(0, 50_000, 700)]
    spilled = metrics_of(tmp_path, 1000, *portions)
    assert spilled == close(metrics_of(tmp_path, 10**6, samples))
    if users <= 10:
        assert spilled == close(reference(*samples))


def test_weights_default_to_one_and_gauc_needs_every_user(tmp_path: Path) -> None:
    logit, label, weight, user = random_samples(np.random.default_rng(0), 100, 3)
    weight[:] = 1
    weighted = metrics_of(tmp_path, 10, [logit, label, weight, user])
    assert metrics_of(tmp_path, 10, [logit, label, None, user]) == weighted
    without = metrics_of(tmp_path, 10, [logit[:50], label[:50], None, user[:50]], [logit[50:], label[50:]])
    assert without == close({**weighted, "gauc": None, "gauc_users": 0, "gauc_users_left_out": 0})


def test_scores_whose_sigmoid_rounds_to_one_are_still_ranked(tmp_path: Path) -> None:
    result = metrics_of(tmp_path, 10, [np.array([40, 60, 1000], np.float32), np.array([0, 1, 1])])
    assert result["auc"] == 1
    assert result["log_loss"] == pytest.approx(40 / 3)
    result = metrics_of(tmp_path, 10, [np.array([-1000, -40], np.float32), np.array([1, 0])])
    assert result["log_loss"] == pytest.approx(500)


@pytest.mark.parametrize(
    ("label", "weight", "undefined"),
    [
        ([], [], {"auc", "gauc", "log_loss", "normalized_entropy", "calibration"}),
        ([0, 1], [0, 0], {"auc", "gauc", "log_loss", "normalized_entropy", "calibration"}),
        ([0, 0], [1, 1], {"auc", "gauc", "normalized_entropy", "calibration"}),
        ([1, 1], [1, 1], {"auc", "gauc", "normalized_entropy"}),
        ([1, 0], [1, 0], {"auc", "gauc", "normalized_entropy"}),
        ([1, 0], [1, 1], {"gauc"}),  # two users of one class
    ],
)
def test_undefined_metrics_are_none(tmp_path: Path, label: list, weight: list, undefined: set) -> None:
    samples = [np.full(len(label), 0.5, np.float32), np.array(label), np.array(weight), np.arange(len(label))]
    result = metrics_of(tmp_path, 10, samples)
    assert {key for key, value in result.items() if value is None} == undefined
    assert not any(math.isnan(value) for value in result.values() if value is not None)


def test_a_logit_that_is_not_finite_is_an_error_and_its_batch_is_not_added(tmp_path: Path) -> None:
    accumulator = MetricAccumulator(tmp_path, 10)
    with pytest.raises(TrainingError, match="2 of 3 logits are NaN or infinite"):
        accumulator.update(np.array([np.nan, 0, np.inf], np.float32), np.array([0, 1, 1]))
    assert accumulator.compute()["rows"] == 0


def count_spill_files(folder: Path) -> int:
    """Return the number of files in the folder that this process has open. The files must not have a name."""
    assert list(folder.iterdir()) == []
    descriptors = [f"/proc/self/fd/{descriptor}" for descriptor in os.listdir("/proc/self/fd")]
    return sum(os.readlink(path).startswith(str(folder)) for path in descriptors if os.path.islink(path))


def test_spill_files_are_gone_after_compute_and_after_an_interruption(tmp_path: Path) -> None:
    samples = random_samples(np.random.default_rng(0), 100, 3)
    accumulator = MetricAccumulator(tmp_path, 10)
    accumulator.update(*samples)
    assert count_spill_files(tmp_path) == 2
    once = accumulator.compute()
    assert count_spill_files(tmp_path) == 0
    accumulator.update(*samples)
    assert accumulator.compute() == once

    def interrupted(accumulator: MetricAccumulator) -> None:
        accumulator.update(*samples)
        assert count_spill_files(tmp_path) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), accumulator:
        interrupted(accumulator)
    assert count_spill_files(tmp_path) == 0


@given(st.lists(st.lists(st.integers(0, 300), unique=True), min_size=1, max_size=8), st.integers(0, 100))
def test_slices_are_consecutive_parts_of_the_merge_within_the_limit(keys: list[list[int]], more: int) -> None:
    runs = [merge(np.array([(key // 20, key % 20, 1, 2) for key in run], ROW)) for run in keys]
    limit = 2 * len(runs) + more
    parts = [np.empty(0, ROW), *slices(runs, limit)]
    assert np.array_equal(np.concatenate(parts), merge(np.concatenate(runs)))
    assert all(0 < part["positive"].sum() <= limit for part in parts[1:])  # each input row weighs 1


def peak_bytes(folder: Path, limit: int) -> int:
    """Return the peak of allocated memory over two million samples, without memory-mapped files."""
    rng = np.random.default_rng(0)
    tracemalloc.start()
    with MetricAccumulator(folder, limit) as accumulator:
        for _ in range(40):
            accumulator.update(*random_samples(rng, 50_000, 1000))
        accumulator.compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_depends_on_the_limit_not_on_the_number_of_samples(tmp_path: Path) -> None:
    bytes_per_row = 28
    assert peak_bytes(tmp_path, 10**7) > 2_000_000 * bytes_per_row
    assert peak_bytes(tmp_path, 100_000) < 7 * 100_000 * bytes_per_row
    assert peak_bytes(tmp_path, 500_000) < 500_000 * PEAK_BYTES_PER_ROW


def test_rows_in_memory_depend_on_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((0, 100_000), (64 << 30, 53_687_091)):
        monkeypatch.setattr(accumulator, "available_memory", lambda free=free: free)
        assert rows_in_memory() == expected
