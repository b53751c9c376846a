"""Choose a sharding for each table and ranks for its shards, so that the slowest rank is fast. Arithmetic only.

The search tries one target time after another. For each target, every table takes the choice with the least work among
the choices whose largest shard takes at most the target time. Then the shards are packed. At the end shards of the
slowest rank are moved, and its tables try other choices.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asymdiffrec.embeddings.planner.packing import EVERY_RANK, WHOLE_HOSTS, Capacity, Costs, Placement, balance, pack

TARGET_FACTORS = np.geomspace(0.5, 8, 40)
"""Target times, as multiples of the lower bound."""
SHARD_TIME_SHARES = (1.0, 0.6, 0.35)
"""Shares of the target time that a single shard may take. Small shards can be packed more evenly."""
MEMORY_PRICES = (0.0, 0.2, 1.0, 5.0)
"""Price of the memory of all ranks, in units of the least work of all tables, when a table takes its choice."""
MEMORY_WEIGHTS = (0.0, 0.3, 1.0, 3.0)
"""Weights of a rank's memory relative to its time, when shards are packed."""
MAX_BALANCED_PLACEMENTS = 24
"""Number of the best placements that are improved by moves and swaps of shards."""
MAX_MOVES = 60
"""Maximum number of times that a table of the slowest rank changes to another choice."""
SHARD_MEMORY_SHARES = (1.0, 0.3, 0.1, 0.0)
"""Shares of a rank's memory that a shard may take. The next share is tried if no placement fits with the previous."""
MAX_SLOWDOWN_TO_USE_ALL_RANKS = 1.1
"""Largest slowdown of the slowest rank that is accepted so that every rank has tables."""
MAX_TRIED = 10
"""Maximum number of tables for which other choices are tried, and of choices for each of these tables."""


class TooLargeError(Exception):
    """No placement fits.

    `tables` are the indices of tables that are too large for any rank by themselves; empty if only all tables together
    are too large.
    """

    def __init__(self, tables: list[int]) -> None:
        super().__init__(f"tables {tables} fit on no rank" if tables else "the tables do not fit together")
        self.tables = tables


def lower_bound(costs: Costs, capacity: Capacity) -> float:
    """Return a lower bound in milliseconds for the time of the slowest rank.

    It is the smallest time T with two properties: every table has a choice whose largest shard fits and takes at most
    T, and the cheapest such choices of all tables together take at most T times the number of ranks.
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
    # Between two targets the least work equals the least work at the lower target.
    return float(min(targets[low], least_work(targets[low - 1]) if low else np.inf))


def search(costs: Costs, capacity: Capacity) -> Placement:
    """Return the fastest placement found, by the time of its slowest rank. Raises TooLargeError if none is found."""
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
    """Return whether each table allows each choice and its largest shard then fits on a rank, [C, T]."""
    return np.isfinite(costs.time) & (costs.memory <= capacity.memory) & (costs.host_memory <= capacity.host_memory)


def _choices(costs: Costs, capacity: Capacity, memory_share: float) -> Iterator[np.ndarray]:
    """Yield arrays of choices, one choice for each table, [T], without duplicates.

    Each combination of target time, share of the target time and memory price gives one array. A shard takes at most
    `memory_share` of a rank's memory, if its table has a choice with such small shards.
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
    """Return the weights of memory for `pack`, in milliseconds per byte; an empty list if the shards cannot fit."""
    tables = np.arange(len(choice))
    shards = costs.shards[choice, tables]
    work, memory = ((cost[choice, tables] * shards).sum() for cost in (costs.time, costs.memory))
    if memory > capacity.memory * capacity.ranks:
        return []
    return [weight * work / max(memory, 1.0) for weight in MEMORY_WEIGHTS]


def _improve_slowest_rank(best: Placement, costs: Costs, capacity: Capacity) -> Placement:
    """Change the choices of tables of the slowest rank while this makes it faster; return the new placement."""
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
    """Return a placement that uses all ranks and takes at most MAX_SLOWDOWN_TO_USE_ALL_RANKS times as long, or `best`.

    It splits one table over all ranks (or whole hosts). This costs little, and frees the ranks that the table used for
    other tables.
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
