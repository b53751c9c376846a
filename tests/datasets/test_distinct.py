"""Counting distinct ids in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets import distinct
from asymdiffrec.datasets.distinct import Distinct


def counted(parts: list[np.ndarray]) -> tuple[int, bool]:
    sketch = Distinct()
    for part in parts:
        sketch.add(part)
    return sketch.count()


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30), max_size=8))
def test_few_ids_are_counted_exactly(parts: list[list[int]]) -> None:
    arrays = [np.array(part, np.int64) for part in parts]
    assert counted(arrays) == (len({identity for part in parts for identity in part}), True)


@pytest.mark.parametrize("number", [70_000, 1_000_000])
def test_many_ids_are_estimated_whatever_their_order(number: int) -> None:
    ids = np.arange(number) * 3 - 10**6
    estimate, exact = counted(np.array_split(ids, 40))
    assert not exact
    assert estimate == pytest.approx(number, rel=4 / distinct.KEPT**0.5)
    mixed = np.random.default_rng(0).permutation(np.concatenate([ids, ids[::2]]))
    assert counted(np.array_split(mixed, 7)) == (estimate, False)


def test_the_estimate_has_no_bias_and_the_error_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "KEPT", 256)
    errors = [counted([np.arange(5000) + 10_000 * trial])[0] / 5000 - 1 for trial in range(400)]
    said = 254**-0.5
    assert abs(np.mean(errors)) < 4 * said / 20
    assert np.std(errors) == pytest.approx(said, rel=0.2)


def test_ids_that_are_waiting_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "KEPT", 100)
    sketch = Distinct()
    for start in range(0, 10_000, 50):
        sketch.add(np.arange(start, start + 50))
        assert len(sketch._smallest) + sum(map(len, sketch._waiting)) <= 300
