"""Choose a sharding for each table and ranks for its shards, so that the slowest rank is fast: arithmetic only.

The search tries one target time after the other: each table takes the choice with the least work whose largest shard
takes no longer than the target, and the shards are packed. At the end the tables of the slowest rank are moved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asymdiffrec.embeddings.planner.packing import EVERY_RANK, WHOLE_HOSTS, Capacity, Costs, Placement, balance, pack

TARGET_FACTORS = np.geomspace(0.5, 8, 40)
"""Target times, as multiples of the lower bound."""
SHARD_TIME_SHARES = (1.0, 0.6, 0.35)
"""Shares of the target that a single shard may take; smaller shards fill the rest."""
MEMORY_PRICES = (0.0, 0.2, 1.0, 5.0)
"""Cost of all memory together, in units of all time together, when a table takes its choice."""
MEMORY_WEIGHTS = (0.0, 0.3, 1.0, 3.0)
"""Weights of a rank's memory beside its time, when shards are packed."""
MAX_BALANCED_PLACEMENTS = 24
"""Placements, the best ones, whose shards are moved and swapped."""
MAX_MOVES = 60
"""Changes of a table of the slowest rank to another choice."""
SHARD_MEMORY_SHARES = (1.0, 0.3, 0.1, 0.0)
"""Shares of a rank's memory that a shard may take; the next one is tried if no placement fits with the one before."""
MAX_SLOWDOWN_TO_USE_ALL_RANKS = 1.1
"""Factor on the slowest rank's time that is accepted so that no rank is without tables."""
MAX_TRIED = 10
"""Tables of the slowest rank that a move tries, and choices for each of them."""


class TooLargeError(Exception):
    """No placement fits. `tables` are the indices of tables that do not even fit alone; empty if only their sum is."""

    def __init__(self, tables: list[int]) -> None:
        super().__init__(f"tables {tables} fit on no rank" if tables else "the tables do not fit together")
        self.tables = tables


def lower_bound(costs: Costs, capacity: Capacity) -> float:
    """Return the milliseconds below which the slowest rank's time cannot be, whatever the placement is.

    It is the smallest target for which every table has a choice with shards that fit and take no longer, while the
    least work of such choices, over all tables, is no more than all ranks do in that time.
    """
    time = np.where(_fits(costs, capacity), costs.time, np.inf)
    work = time * costs.shards
    targets = np.unique(time[np.isfinite(time)])
    targets = targets[targets >= time.min(axis=0).max()]

    def least_work(target: float) -> float:
        return float(np.where(time <= target, work, np.inf).min(axis=0).sum()) / capacity.ranks

    if least_work(targets[-1]) > targets[-1]:
        return least_work(targets[-1])
    low, high = 0, len(targets) - 1
    while low < high:
        middle = (low + high) // 2
        if least_work(targets[middle]) <= targets[middle]:
            high = middle
        else:
            low = middle + 1
    # Between two targets the least work is that of the lower one.
    return float(min(targets[low], least_work(targets[low - 1]) if low else np.inf))


def search(costs: Costs, capacity: Capacity) -> Placement:
    """Return the placement with the least time on its slowest rank. Raises TooLargeError if the search finds none."""
    if too_large := np.flatnonzero(~_fits(costs, capacity).any(axis=0)).tolist():
        raise TooLargeError(too_large)
    for memory_share in SHARD_MEMORY_SHARES:
        packed = (
            pack(costs, capacity, choice, weight)
            for choice in _choices(costs, capacity, memory_share)
            for weight in _memory_weights(costs, capacity, choice)
        )
        if placements := [placement for placement in packed if placement is not None]:
            placements = sorted(placements, key=lambda placement: placement.slowest)[:MAX_BALANCED_PLACEMENTS]
            placements = [balance(placement, costs, capacity) for placement in placements]
            best = min(placements, key=lambda placement: placement.slowest)
            return _use_all_ranks(_improve_slowest_rank(best, costs, capacity), costs, capacity)
    raise TooLargeError([])


def _fits(costs: Costs, capacity: Capacity) -> np.ndarray:
    """Return whether a table allows a choice and its largest shard fits on a rank, [C, T]."""
    return np.isfinite(costs.time) & (costs.memory <= capacity.memory) & (costs.host_memory <= capacity.host_memory)


def _choices(costs: Costs, capacity: Capacity, memory_share: float) -> Iterator[np.ndarray]:
    """Yield a choice for each table, for each target and each price of memory, without duplicates.

    A shard takes at most `memory_share` of a rank's memory, if its table can be split so finely.
    """
    finest = np.where(_fits(costs, capacity), costs.memory, np.inf).min(axis=0)
    fits = _fits(costs, capacity) & (costs.memory <= np.maximum(memory_share * capacity.memory, finest))
    time = np.where(fits, costs.time, np.inf)
    work = time * costs.shards
    memory = costs.memory * costs.shards * (work.min(axis=0).sum() / (capacity.memory * capacity.ranks))
    bound, quickest = lower_bound(costs, capacity), time.argmin(axis=0)
    tables, seen = np.arange(time.shape[1]), set()
    for price in MEMORY_PRICES:
        cost = work + price * memory
        for target in bound * TARGET_FACTORS:
            for share in SHARD_TIME_SHARES:
                quick_enough = np.where(time <= share * target, cost, np.inf)
                cheapest = quick_enough.argmin(axis=0)
                choice = np.where(np.isfinite(quick_enough[cheapest, tables]), cheapest, quickest)
                if (key := choice.tobytes()) not in seen:
                    seen.add(key)
                    yield choice


def _memory_weights(costs: Costs, capacity: Capacity, choice: np.ndarray) -> list[float]:
    """Return the weights of memory to pack with, in milliseconds per byte; none if there is too little memory."""
    tables = np.arange(len(choice))
    shards = costs.shards[choice, tables]
    work, memory = ((cost[choice, tables] * shards).sum() for cost in (costs.time, costs.memory))
    if memory > capacity.memory * capacity.ranks:
        return []
    return [weight * work / max(memory, 1.0) for weight in MEMORY_WEIGHTS]


def _improve_slowest_rank(best: Placement, costs: Costs, capacity: Capacity) -> Placement:
    """Give tables of the slowest rank other choices for as long as that helps."""
    fitting = np.where(_fits(costs, capacity), costs.time, np.inf)
    work = fitting * costs.shards
    for _ in range(MAX_MOVES):
        slowest = int(best.time.argmax())
        on_slowest = [t for t, ranks in enumerate(best.ranks) if slowest in ranks]
        on_slowest.sort(key=lambda t: -costs.time[best.choice[t], t])
        candidates = []
        for table in on_slowest[:MAX_TRIED]:
            for other in np.argsort(work[:, table])[:MAX_TRIED]:
                if other != best.choice[table] and np.isfinite(work[other, table]):
                    choice = best.choice.copy()
                    choice[table] = other
                    candidates.append(pack(costs, capacity, choice))
        placements = sorted((p for p in candidates if p is not None), key=lambda p: p.slowest)[:MAX_TRIED]
        better = min((balance(p, costs, capacity) for p in placements), key=lambda p: p.slowest, default=best)
        if better.slowest >= best.slowest * (1 - 1e-4):
            break
        best = better
    return best


def _use_all_ranks(best: Placement, costs: Costs, capacity: Capacity) -> Placement:
    """Return the placement, or if it leaves ranks without tables, one that uses all ranks and takes little longer.

    If there are fewer shards than ranks, finer shards would only cost more; but one table with a part on every rank
    costs little, and the ranks that it had are free for others.
    """
    if (best.time > 0).all():
        return best
    candidates = []
    work = np.where(_fits(costs, capacity), costs.time, np.inf)
    for other in np.flatnonzero(np.isin(costs.ranks_of_shards, (EVERY_RANK, WHOLE_HOSTS))):
        for table in np.argsort(work[other])[:MAX_TRIED]:
            if np.isfinite(work[other, table]):
                choice = best.choice.copy()
                choice[table] = other
                candidates.append(pack(costs, capacity, choice))
    placements = [balance(p, costs, capacity) for p in candidates if p is not None and (p.time > 0).all()]
    everywhere = min(placements, key=lambda p: p.slowest, default=best)
    return everywhere if everywhere.slowest <= MAX_SLOWDOWN_TO_USE_ALL_RANKS * best.slowest else best
