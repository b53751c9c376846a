"""The search returns placements that fit, never below the lower bound, and near the best of all placements."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.embeddings.planner.packing import (
    ANY_RANKS,
    EVERY_RANK,
    ONE_HOST,
    WHOLE_HOSTS,
    Capacity,
    Costs,
    Placement,
    pack,
)
from asymdiffrec.embeddings.planner.search import TooLargeError, lower_bound, search

LOCAL_RANKS = 2


def problem(seed: int, tables: int = 12, ranks: int = 8) -> tuple[Costs, Capacity]:
    """Return costs similar to real tables: finer choices take less time for each shard, but more time in total."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, tables + 1))
    ranks = LOCAL_RANKS * int(rng.integers(1, ranks // LOCAL_RANKS + 1))
    whole, size = rng.lognormal(0, 1.5, count), rng.lognormal(0, 1.5, count)
    shards = np.array([1, 2, LOCAL_RANKS, LOCAL_RANKS, ranks])
    ranks_of_shards = np.array([ANY_RANKS, ANY_RANKS, WHOLE_HOSTS, ONE_HOST, EVERY_RANK])
    time = whole * rng.uniform(1, 1.5, (5, count)) / shards[:, None]
    time[1:][rng.random((4, count)) < 0.3] = np.inf
    memory = np.broadcast_to(size, (5, count)) / shards[:, None]
    capacity = rng.uniform(0.8, 4) * size.sum() / ranks + size.max() * rng.random()
    costs = Costs(time, memory, np.zeros((5, count)), np.broadcast_to(shards[:, None], (5, count)), ranks_of_shards)
    return costs, Capacity(ranks, LOCAL_RANKS, float(capacity), 0.0)


def check_placement(placement: Placement, costs: Costs, capacity: Capacity) -> None:
    time, memory = np.zeros(capacity.ranks), np.zeros(capacity.ranks)
    for table, (choice, ranks) in enumerate(zip(placement.choice, placement.ranks, strict=True)):
        assert len(set(ranks.tolist())) == len(ranks) == costs.shards[choice, table]
        hosts = ranks // capacity.local_ranks
        if costs.ranks_of_shards[choice] == EVERY_RANK:
            assert ranks.tolist() == list(range(capacity.ranks))
        elif costs.ranks_of_shards[choice] == WHOLE_HOSTS:
            assert all(np.bincount(hosts)[hosts] == capacity.local_ranks)
            assert (np.diff(ranks) > 0).all()
        elif costs.ranks_of_shards[choice] == ONE_HOST:
            assert len(set(hosts)) == 1
        time[ranks] += costs.time[choice, table]
        memory[ranks] += costs.memory[choice, table]
    np.testing.assert_allclose(placement.time, time)
    np.testing.assert_allclose(placement.memory, memory)
    assert (memory <= capacity.memory * (1 + 1e-12)).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_placements_fit_and_are_not_below_the_bound(seed: int) -> None:
    costs, capacity = problem(seed)
    try:
        placement = search(costs, capacity)
    except TooLargeError:
        return
    check_placement(placement, costs, capacity)
    assert placement.slowest >= lower_bound(costs, capacity) * (1 - 1e-12)


def test_few_tables_are_placed_about_as_well_as_by_trying_all_choices() -> None:
    ratios = []
    for seed in range(40):
        costs, capacity = problem(seed, tables=4, ranks=4)
        packed = [
            placement
            for choice in itertools.product(range(5), repeat=costs.time.shape[1])
            if np.isfinite(costs.time[list(choice), range(len(choice))]).all()
            and (placement := pack(costs, capacity, np.array(choice))) is not None
        ]
        if packed:
            ratios.append(search(costs, capacity).slowest / min(placement.slowest for placement in packed))
    assert len(ratios) > 30
    assert np.mean(ratios) <= 1.01
    assert max(ratios) <= 1.25


def one_choice(time: list[float], memory: list[float]) -> Costs:
    shape = (1, len(time))
    return Costs(np.array([time]), np.array([memory]), np.zeros(shape), np.ones(shape, np.int64), np.array([ANY_RANKS]))


def test_the_bound_is_the_mean_load_or_the_longest_shard() -> None:
    capacity = Capacity(4, 4, 1e9, 0.0)
    assert lower_bound(one_choice([1.0] * 8, [0.0] * 8), capacity) == 2.0
    assert lower_bound(one_choice([1.0, 5.0], [0.0, 0.0]), capacity) == 5.0


def test_tables_that_fit_on_no_rank_are_named() -> None:
    with pytest.raises(TooLargeError) as raised:
        search(one_choice([1.0, 1.0, 1.0], [1.0, 11.0, 12.0]), Capacity(2, 2, 10.0, 0.0))
    assert raised.value.tables == [1, 2]
    with pytest.raises(TooLargeError) as raised:
        search(one_choice([1.0] * 3, [6.0] * 3), Capacity(2, 2, 10.0, 0.0))
    assert raised.value.tables == []


def test_memory_decides_if_times_are_equal() -> None:
    costs = one_choice([1.0, 1.0, 1.0, 1e-3, 1e-3, 1e-3], [1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    placement = search(costs, Capacity(3, 3, 10.0, 0.0))
    assert placement.memory.tolist() == [10.0, 10.0, 10.0]
