"""Histograms of few and of many values, and the knots that are chosen from the histograms."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asymdiffrec.datasets.statistics.histogram import MAX_VALUES, Histogram

NUMBERS = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=60)


@given(NUMBERS, NUMBERS)
def test_a_histogram_of_few_values_is_exact(first: list[float], second: list[float]) -> None:
    merged = Histogram.from_values(np.array(first)).merge(Histogram.from_values(np.array(second)))
    values, rows = np.unique(first + second, return_counts=True)
    assert np.array_equal(merged.values, values)
    assert np.array_equal(merged.rows, rows)


@given(NUMBERS, st.integers(1, 12))
def test_reduce_keeps_frequent_values_and_all_rows(numbers: list[float], max_values: int) -> None:
    whole = Histogram.from_values(np.array(numbers))
    reduced = whole.reduce(max_values)
    assert len(reduced.values) <= max_values
    assert reduced.rows.sum() == len(numbers)
    assert np.isin(reduced.values, whole.values).all()
    assert (np.diff(reduced.values) > 0).all()
    frequent = whole.values[whole.rows * max_values >= len(numbers)]
    assert np.isin(frequent, reduced.values).all()


def test_a_histogram_of_many_values_has_accurate_quantiles() -> None:
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.lognormal(size=100_000), np.zeros(20_000)])
    rng.shuffle(numbers)
    histogram = Histogram.empty()
    for part in np.array_split(numbers, 200):
        histogram = histogram.merge(Histogram.from_values(part))
    assert len(histogram.values) <= MAX_VALUES
    assert histogram.rows.sum() == len(numbers)
    assert histogram.rows[histogram.values == 0] == 20_000
    shares = np.linspace(0.2, 1, 50)
    positions = np.searchsorted(histogram.rows.cumsum() / len(numbers), shares)
    exact = np.searchsorted(np.sort(numbers), histogram.values[np.minimum(positions, len(histogram.values) - 1)]) / len(
        numbers
    )
    assert np.abs(exact - shares).max() < 0.005, "quantiles"
    assert histogram.values[[0, -1]].tolist() == [numbers.min(), numbers.max()]


def test_knots() -> None:
    assert Histogram.empty().knots(4) == []
    assert Histogram.from_values(np.array([3.0, 1.0, 1.0, 7.0])).knots(4) == [1, 3, 7]
    assert Histogram.from_values(np.arange(101.0)).knots(4) == [0, 17, 50, 83, 100]
