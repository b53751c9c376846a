"""Choosing a way to shard each table, and ranks for its shards, so that the slowest rank is fast: arithmetic alone.

A target is tried after the other: each table takes the way with the least work whose largest shard takes no longer than
the target, and the shards are packed. At last the tables of the slowest rank are moved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asymdiffrec.embeddings.planner.packing import EVERY, MACHINES, Capacity, Costs, Placement, balanced, pack

TARGETS = np.geomspace(0.5, 8, 40)
"""Times that are tried, as multiples of the lower bound"""
SHARES = (1.0, 0.6, 0.35)
"""Of the target that a single shard may take: the rest is filled with smaller ones"""
SCARCITIES = (0.0, 0.2, 1.0, 5.0)
"""What all memory together is worth, in units of all time together"""
SHARES_OF_MEMORY = (0.0, 0.3, 1.0, 3.0)
"""How much a rank's memory counts beside its time, in finding the one with the least to do"""
BALANCED = 24
"""Placements, the best ones, whose shards are moved and swapped"""
MOVES = 60
LARGEST = (1.0, 0.3, 0.1, 0.0)
"""Of a rank's memory that a shard may take: the next one is tried where no placement was found with the one before"""
DEARER = 1.1
"""How much more time the slowest rank may take for no rank to be without any table"""
WORST = 10
"""Tables of the slowest rank, and ways for each of them, that a move tries"""


class TooLargeError(Exception):
    """No placement was found. `tables` are the places of those that fit nowhere even alone; none if it is their sum."""

    def __init__(self, tables: list[int]) -> None:
        super().__init__(f"tables {tables} fit nowhere" if tables else "the tables do not fit together")
        self.tables = tables


def lower_bound(costs: Costs, capacity: Capacity) -> float:
    """Milliseconds below which no rank's time can be the largest, whatever the placement.

    It is the smallest target for which every table has a way with shards that fit and take no longer, while the least
    work of such ways, over all tables, is no more than all ranks do in that time.
    """
    time = np.where(_fits(costs, capacity), costs.time, np.inf)
    work = time * costs.shards
    targets = np.unique(time[np.isfinite(time)])
    targets = targets[targets >= time.min(axis=0).max()]

    def least(target: float) -> float:
        return float(np.where(time <= target, work, np.inf).min(axis=0).sum()) / capacity.ranks

    if least(targets[-1]) > targets[-1]:
        return least(targets[-1])
    low, high = 0, len(targets) - 1
    while low < high:
        middle = (low + high) // 2
        if least(targets[middle]) <= targets[middle]:
            high = middle
        else:
            low = middle + 1
    # Between two targets the least work stays as it was at the lower one.
    return float(min(targets[low], least(targets[low - 1]) if low else np.inf))


def search(costs: Costs, capacity: Capacity) -> Placement:
    """The placement with the least time on its slowest rank that was found. Raises TooLargeError where none was."""
    if homeless := np.flatnonzero(~_fits(costs, capacity).any(axis=0)).tolist():
        raise TooLargeError(homeless)
    for largest in LARGEST:
        packed = (
            pack(costs, capacity, choice, weight)
            for choice in _choices(costs, capacity, largest)
            for weight in _weights(costs, capacity, choice)
        )
        if found := [placement for placement in packed if placement is not None]:
            found = sorted(found, key=lambda placement: placement.slowest)[:BALANCED]
            found = [balanced(placement, costs, capacity) for placement in found]
            best = _moved(min(found, key=lambda placement: placement.slowest), costs, capacity)
            return _spread(best, costs, capacity)
    raise TooLargeError([])


def _fits(costs: Costs, capacity: Capacity) -> np.ndarray:
    """Whether a way is open to a table and its largest shard fits, [W, T]."""
    return np.isfinite(costs.time) & (costs.memory <= capacity.memory) & (costs.host <= capacity.host)


def _choices(costs: Costs, capacity: Capacity, largest: float) -> Iterator[np.ndarray]:
    """A way for each table, for each target and for each worth of memory; none twice.

    Shards take no more than `largest` of a rank's memory, of tables that can be split so finely.
    """
    finest = np.where(_fits(costs, capacity), costs.memory, np.inf).min(axis=0)
    fits = _fits(costs, capacity) & (costs.memory <= np.maximum(largest * capacity.memory, finest))
    time = np.where(fits, costs.time, np.inf)
    work = time * costs.shards
    memory = costs.memory * costs.shards * (work.min(axis=0).sum() / (capacity.memory * capacity.ranks))
    bound, quickest = lower_bound(costs, capacity), time.argmin(axis=0)
    tables, seen = np.arange(time.shape[1]), set()
    for scarcity in SCARCITIES:
        cost = work + scarcity * memory
        for target in bound * TARGETS:
            for share in SHARES:
                open_ways = np.where(time <= share * target, cost, np.inf)
                cheapest = open_ways.argmin(axis=0)
                choice = np.where(np.isfinite(open_ways[cheapest, tables]), cheapest, quickest)
                if (key := choice.tobytes()) not in seen:
                    seen.add(key)
                    yield choice


def _weights(costs: Costs, capacity: Capacity, choice: np.ndarray) -> list[float]:
    """Milliseconds that a byte counts for in finding the rank with the least to do; none if memory is too little."""
    tables = np.arange(len(choice))
    shards = costs.shards[choice, tables]
    work, memory = ((cost[choice, tables] * shards).sum() for cost in (costs.time, costs.memory))
    if memory > capacity.memory * capacity.ranks:
        return []
    return [share * work / max(memory, 1.0) for share in SHARES_OF_MEMORY]


def _moved(best: Placement, costs: Costs, capacity: Capacity) -> Placement:
    """Give tables of the slowest rank other ways for as long as that helps."""
    fitting = np.where(_fits(costs, capacity), costs.time, np.inf)
    work = fitting * costs.shards
    for _ in range(MOVES):
        slowest = int(best.time.argmax())
        there = [t for t, ranks in enumerate(best.ranks) if slowest in ranks]
        there.sort(key=lambda t: -costs.time[best.choice[t], t])
        tried = []
        for table in there[:WORST]:
            for way in np.argsort(work[:, table])[:WORST]:
                if way != best.choice[table] and np.isfinite(work[way, table]):
                    choice = best.choice.copy()
                    choice[table] = way
                    tried.append(pack(costs, capacity, choice))
        found = sorted((one for one in tried if one is not None), key=lambda one: one.slowest)[:WORST]
        better = min((balanced(one, costs, capacity) for one in found), key=lambda one: one.slowest, default=best)
        if better.slowest >= best.slowest * (1 - 1e-4):
            break
        best = better
    return best


def _spread(best: Placement, costs: Costs, capacity: Capacity) -> Placement:
    """The placement, or where it leaves ranks without tables, one that leaves none and takes little longer.

    Where shards are fewer than ranks, finer ones would only cost more; but one table in parts on every rank costs
    little, and frees the ranks that it had.
    """
    if (best.time > 0).all():
        return best
    tried = []
    work = np.where(_fits(costs, capacity), costs.time, np.inf)
    for way in np.flatnonzero(np.isin(costs.place, (EVERY, MACHINES))):
        for table in np.argsort(work[way])[:WORST]:
            if np.isfinite(work[way, table]):
                choice = best.choice.copy()
                choice[table] = way
                tried.append(pack(costs, capacity, choice))
    found = [balanced(one, costs, capacity) for one in tried if one is not None and (one.time > 0).all()]
    spread = min(found, key=lambda one: one.slowest, default=best)
    return spread if spread.slowest <= DEARER * best.slowest else best
