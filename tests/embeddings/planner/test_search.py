"""The search's outcome is always a placement that fits, never better than the bound, and near the best there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.embeddings.planner.packing import (
    EVERY,
    MACHINES,
    ONE_MACHINE,
    RANKS,
    Capacity,
    Costs,
    Placement,
    pack,
)
from asymdiffrec.embeddings.planner.search import TooLargeError, lower_bound, search

MACHINE = 2


def problem(seed: int, tables: int = 12, ranks: int = 8) -> tuple[Costs, Capacity]:
    """Costs of ways like those of real tables: finer ways take less time each, and more work in sum."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, tables + 1))
    ranks = MACHINE * int(rng.integers(1, ranks // MACHINE + 1))
    whole, size = rng.lognormal(0, 1.5, count), rng.lognormal(0, 1.5, count)
    shards = np.array([1, 2, MACHINE, MACHINE, ranks])
    place = np.array([RANKS, RANKS, MACHINES, ONE_MACHINE, EVERY])
    time = whole * rng.uniform(1, 1.5, (5, count)) / shards[:, None]
    time[1:][rng.random((4, count)) < 0.3] = np.inf
    memory = np.broadcast_to(size, (5, count)) / shards[:, None]
    capacity = rng.uniform(0.8, 4) * size.sum() / ranks + size.max() * rng.random()
    costs = Costs(time, memory, np.zeros((5, count)), np.broadcast_to(shards[:, None], (5, count)), place)
    return costs, Capacity(ranks, MACHINE, float(capacity), 0.0)


def require_sound(found: Placement, costs: Costs, capacity: Capacity) -> None:
    time, memory = np.zeros(capacity.ranks), np.zeros(capacity.ranks)
    for table, (way, ranks) in enumerate(zip(found.choice, found.ranks, strict=True)):
        assert len(set(ranks.tolist())) == len(ranks) == costs.shards[way, table]
        machines = ranks // capacity.local
        if costs.place[way] == EVERY:
            assert ranks.tolist() == list(range(capacity.ranks))
        elif costs.place[way] == MACHINES:
            assert all(np.bincount(machines)[machines] == capacity.local)
            assert (np.diff(ranks) > 0).all()
        elif costs.place[way] == ONE_MACHINE:
            assert len(set(machines)) == 1
        time[ranks] += costs.time[way, table]
        memory[ranks] += costs.memory[way, table]
    np.testing.assert_allclose(found.time, time)
    np.testing.assert_allclose(found.memory, memory)
    assert (memory <= capacity.memory * (1 + 1e-12)).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_what_is_found_fits_and_is_not_below_the_bound(seed: int) -> None:
    costs, capacity = problem(seed)
    try:
        found = search(costs, capacity)
    except TooLargeError:
        return
    require_sound(found, costs, capacity)
    assert found.slowest >= lower_bound(costs, capacity) * (1 - 1e-12)


def test_few_tables_are_placed_about_as_well_as_all_choices_can_be() -> None:
    ratios = []
    for seed in range(40):
        costs, capacity = problem(seed, tables=4, ranks=4)
        packed = [
            found
            for choice in itertools.product(range(5), repeat=costs.time.shape[1])
            if np.isfinite(costs.time[list(choice), range(len(choice))]).all()
            and (found := pack(costs, capacity, np.array(choice))) is not None
        ]
        if packed:
            ratios.append(search(costs, capacity).slowest / min(found.slowest for found in packed))
    assert len(ratios) > 30
    assert np.mean(ratios) <= 1.01
    assert max(ratios) <= 1.25


def one_way(time: list[float], memory: list[float]) -> Costs:
    shape = (1, len(time))
    return Costs(np.array([time]), np.array([memory]), np.zeros(shape), np.ones(shape, np.int64), np.array([RANKS]))


def test_the_bound_is_the_mean_or_the_longest() -> None:
    capacity = Capacity(4, 4, 1e9, 0.0)
    assert lower_bound(one_way([1.0] * 8, [0.0] * 8), capacity) == 2.0
    assert lower_bound(one_way([1.0, 5.0], [0.0, 0.0]), capacity) == 5.0


def test_tables_that_fit_nowhere_are_told() -> None:
    with pytest.raises(TooLargeError) as raised:
        search(one_way([1.0, 1.0, 1.0], [1.0, 11.0, 12.0]), Capacity(2, 2, 10.0, 0.0))
    assert raised.value.tables == [1, 2]
    with pytest.raises(TooLargeError) as raised:
        search(one_way([1.0] * 3, [6.0] * 3), Capacity(2, 2, 10.0, 0.0))
    assert raised.value.tables == []


def test_memory_decides_where_time_does_not_care() -> None:
    costs = one_way([1.0, 1.0, 1.0, 1e-3, 1e-3, 1e-3], [1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    found = search(costs, Capacity(3, 3, 10.0, 0.0))
    assert found.memory.tolist() == [10.0, 10.0, 10.0]
