"""The frequency distribution of ids, estimated from the counts of a sample of the ids."""

from __future__ import annotations

import numpy as np
import pytest

from asymdiffrec.datasets.statistics.lookups import Lookups


def zipf(ids: int, total: int) -> np.ndarray:
    """Return the counts of ids with a Zipf distribution, [ids]."""
    shares = np.arange(1, ids + 1) ** -1.1
    return np.maximum(1, np.round(shares / shares.sum() * total)).astype(np.int64)


def test_few_ids_are_exact() -> None:
    lookups = Lookups.from_counts(np.array([1, 1, 2, 6]), distinct=4, rows=20, total=10)
    assert lookups == Lookups(per_sample=0.5, repeats=[(1, 2), (2, 1), (6, 1)])
    assert [lookups.hot_ids(share) for share in (0.6, 0.8, 0.9, 1.0)] == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sample_of_skewed_ids_gives_accurate_estimates(seed: int) -> None:
    counts = zipf(200_000, 3_000_000)
    sample = np.random.default_rng(seed).choice(counts, 20_000, replace=False)
    lookups = Lookups.from_counts(sample, len(counts), rows=1_000_000, total=int(counts.sum()))
    assert sum(ids for _, ids in lookups.repeats) == pytest.approx(len(counts))
    assert sum(count * ids for count, ids in lookups.repeats) == pytest.approx(counts.sum(), rel=1e-3)
    hot = int(np.searchsorted(np.cumsum(np.sort(counts)[::-1]), 0.9 * counts.sum()))
    assert lookups.hot_ids(0.9) == pytest.approx(hot, rel=0.05)
    shares = counts / counts.sum()
    for drawn in (10_000, 1_000_000):
        exact = (1 - (1 - shares) ** drawn).sum()
        assert lookups.expected_distinct(drawn) == pytest.approx(exact, rel=0.12)
        cold = (1 - (1 - np.sort(shares)[:-40_000]) ** drawn).sum()
        assert lookups.expected_distinct(drawn, excluded=40_000) == pytest.approx(cold, rel=0.05)


def test_a_field_without_ids_has_no_lookups() -> None:
    lookups = Lookups.from_counts(np.empty(0, np.int64), 0, rows=5, total=0)
    assert lookups.per_sample == 0
    assert lookups.hot_ids(0.9) == 0
    assert lookups.expected_distinct(100) == 0
