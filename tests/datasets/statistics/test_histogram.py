"""The values that stand for a number's distribution, against all of its values."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asymdiffrec.datasets.statistics.histogram import KEPT, Distribution

NUMBERS = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=60)


@given(NUMBERS, NUMBERS)
def test_few_values_are_all_kept(first, second):
    found = Distribution.of(np.array(first)).and_of(Distribution.of(np.array(second)))
    values, rows = np.unique(first + second, return_counts=True)
    assert np.array_equal(found.values, values)
    assert np.array_equal(found.rows, rows)


@given(NUMBERS, st.integers(1, 12))
def test_within(numbers, most):
    whole = Distribution.of(np.array(numbers))
    found = whole.within(most)
    assert len(found.values) <= most
    assert found.rows.sum() == len(numbers)
    assert np.isin(found.values, whole.values).all()
    assert (np.diff(found.values) > 0).all()
    frequent = whole.values[whole.rows * most >= len(numbers)]
    assert np.isin(frequent, found.values).all(), "a frequent value stands for itself"


def test_many_values_in_parts():
    rng = np.random.default_rng(0)
    numbers = np.concatenate([rng.lognormal(size=100_000), np.zeros(20_000)])
    rng.shuffle(numbers)
    found = Distribution(np.empty(0), np.empty(0, np.int64))
    for part in np.array_split(numbers, 200):
        found = found.and_of(Distribution.of(part))
    assert len(found.values) <= KEPT
    assert found.rows.sum() == len(numbers)
    assert found.rows[found.values == 0] == 20_000
    shares = np.linspace(0.2, 1, 50)
    places = np.searchsorted(found.rows.cumsum() / len(numbers), shares)
    exact = np.searchsorted(np.sort(numbers), found.values[np.minimum(places, len(found.values) - 1)]) / len(numbers)
    assert np.abs(exact - shares).max() < 0.005, "quantiles"
    assert found.values[[0, -1]].tolist() == [numbers.min(), numbers.max()]


def test_knots():
    assert Distribution(np.empty(0), np.empty(0, np.int64)).knots(4) == []
    assert Distribution.of(np.array([3.0, 1.0, 1.0, 7.0])).knots(4) == [1, 3, 7]
    assert Distribution.of(np.arange(101.0)).knots(4) == [0, 17, 50, 83, 100]
