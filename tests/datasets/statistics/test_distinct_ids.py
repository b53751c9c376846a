"""Counting distinct ids in bounded memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.decoding.id_hash import splitmix64
from asymdiffrec.datasets.statistics import distinct_ids
from asymdiffrec.datasets.statistics.distinct_ids import DistinctIdSketch


def distinct(parts: list[np.ndarray]) -> tuple[int, bool]:
    """Return the number of distinct ids in all parts, and whether it is exact."""
    sketch = DistinctIdSketch()
    for part in parts:
        sketch.add(part, np.ones(len(part), np.int64))
    return sketch.distinct()


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30), max_size=8))
def test_few_ids_are_counted_exactly(parts: list[list[int]]) -> None:
    arrays = [np.array(part, np.int64) for part in parts]
    assert distinct(arrays) == (len({identity for part in parts for identity in part}), True)


@pytest.mark.parametrize("number", [70_000, 1_000_000])
def test_many_ids_are_estimated_independently_of_their_order(number: int) -> None:
    ids = np.arange(number) * 3 - 10**6
    estimate, exact = distinct(np.array_split(ids, 40))
    assert not exact
    assert estimate == pytest.approx(number, rel=4 / distinct_ids.SKETCH_SIZE**0.5)
    mixed = np.random.default_rng(0).permutation(np.concatenate([ids, ids[::2]]))
    assert distinct(np.array_split(mixed, 7)) == (estimate, False)


def test_the_estimate_is_unbiased_and_has_the_documented_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct_ids, "SKETCH_SIZE", 256)
    errors = [distinct([np.arange(5000) + 10_000 * trial])[0] / 5000 - 1 for trial in range(400)]
    standard_error = 254**-0.5
    assert abs(np.mean(errors)) < 4 * standard_error / 20
    assert np.std(errors) == pytest.approx(standard_error, rel=0.2)


def test_pending_ids_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct_ids, "SKETCH_SIZE", 100)
    sketch = DistinctIdSketch()
    for start in range(0, 10_000, 50):
        sketch.add(np.arange(start, start + 50), np.ones(50, np.int64))
        assert len(sketch._hashes) + sum(len(hashes) for hashes, _ in sketch._pending) <= 300


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 9)), max_size=80), max_size=20))
def test_the_ids_in_the_sketch_are_counted_exactly(parts: list[list[tuple[int, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct_ids, "SKETCH_SIZE", 50)
        sketch, counts = DistinctIdSketch(), Counter[int]()
        for part in parts:
            ids, id_counts = np.array(part, np.int64).reshape(-1, 2).T
            sketch.add(ids.copy(), id_counts)
            for identity, count in part:
                counts[identity] += count
        hashes = splitmix64(np.array(sorted(counts), np.int64).view(np.uint64))
        sampled = np.array(sorted(counts))[np.argsort(hashes)][:50]
        assert sketch.counts().tolist() == [counts[identity] for identity in sampled.tolist()]
