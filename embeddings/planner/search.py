"""Choosing a way to shard each table, and ranks for its shards, so that the slowest rank is fast: arithmetic alone.

A target is tried after the other: each table takes the way with the least work whose largest shard takes no longer than
the target; shards that every rank has are laid first, then those that all ranks of a machine have, then single ones,
the longest first, each on the rank that has the least to do. At last the tables of the slowest rank are moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np

EVERY, MACHINES, RANKS, ONE_MACHINE = range(4)
"""Where the shards of a table go: one to every rank, one to every rank of some machines, each to a rank of its own, or
each to a rank of its own on one machine"""
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


@dataclass(frozen=True)
class Costs:
    """What W ways cost for T tables, for the largest shard of each."""

    time: np.ndarray
    """Milliseconds of a step, [W, T]; infinite where a way is not open to a table"""
    memory: np.ndarray
    """Bytes on the device, [W, T]"""
    host: np.ndarray
    """Bytes in the memory of the machine, [W, T]"""
    shards: np.ndarray
    """How many shards there are, [W, T]"""
    place: np.ndarray
    """EVERY, MACHINES, RANKS or ONE_MACHINE, [W]"""


@dataclass(frozen=True)
class Capacity:
    """Ranks, `local` of them on each machine, with bytes for tables on the device and in the machine's memory."""

    ranks: int
    local: int
    memory: float
    host: float


@dataclass(frozen=True)
class Placement:
    """A way for each table, the ranks of its shards, and what they cost each rank."""

    choice: np.ndarray
    """[T]"""
    ranks: list[np.ndarray]
    """Of each table's shards, in their order"""
    time: np.ndarray
    """[ranks]"""
    memory: np.ndarray
    """[ranks]"""

    @property
    def slowest(self) -> float:
        return float(self.time.max())


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


def pack(costs: Costs, capacity: Capacity, choice: np.ndarray, weight: float = 0.0) -> Placement | None:
    """Ranks for the shards of tables that have chosen their ways; None where they do not fit.

    The rank with the least to do is told by its time and `weight` times its memory.
    """
    tables = np.arange(len(choice))
    time, memory, host = (cost[choice, tables] for cost in (costs.time, costs.memory, costs.host))
    shards, place = costs.shards[choice, tables].astype(np.int64), costs.place[choice]
    placed = np.where(place == EVERY, 0, shards)
    first = np.concatenate([[0], np.cumsum(placed)])
    ranks = np.empty(first[-1], np.int64)
    order = np.argsort(-(time + weight * memory), kind="stable")
    fits, load, used = _pack(
        order, time, memory, host, shards, place, first, ranks,
        capacity.ranks, capacity.local, capacity.memory, capacity.host, weight,
    )  # fmt: skip
    if not fits:
        return None
    every = np.arange(capacity.ranks)
    of_table = [every if kind == EVERY else np.sort(ranks[first[t] : first[t + 1]]) for t, kind in enumerate(place)]
    return Placement(choice, of_table, load, used)


@numba.njit(cache=True)
def _pack(order, time, memory, host, shards, place, first, placed, ranks, local, most, most_host, weight):  # type: ignore[no-untyped-def]
    """Fills `placed`, from first[t] on the ranks of table t's shards; gives whether they fit, and each rank's load.

    Sorting is left to the caller, and the least is looked for by going through all: so this compiles in a second.
    """
    load, used, used_host = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    taken = np.zeros(ranks, np.bool_)
    for kind in (EVERY, MACHINES, ONE_MACHINE, RANKS):
        for t in order:
            if place[t] != kind:
                continue
            if kind == EVERY:
                for rank in range(ranks):
                    load[rank] += time[t]
                    used[rank] += memory[t]
                    used_host[rank] += host[t]
                    if used[rank] > most or used_host[rank] > most_host:
                        return False, load, used
                continue
            # Shards go to groups of ranks: `together` of them at once, to ranks that stand together.
            together = local if kind != RANKS else 1
            start, stop = 0, ranks
            if kind == ONE_MACHINE:
                start = _least(load, used, used_host, taken, local, 0, ranks, 0.0, 0.0, most, most_host, weight)
                if start < 0:
                    return False, load, used
                together, stop = 1, start + local
            for part in range(shards[t] // together):
                found = _least(
                    load, used, used_host, taken, together, start, stop, memory[t], host[t], most, most_host, weight
                )
                if found < 0:
                    return False, load, used
                taken[found] = True
                for rank in range(found, found + together):
                    placed[first[t] + part * together + rank - found] = rank
            for part in range(shards[t]):
                rank = placed[first[t] + part]
                taken[rank] = False
                load[rank] += time[t]
                used[rank] += memory[t]
                used_host[rank] += host[t]
    return True, load, used


@numba.njit(cache=True)
def _least(load, used, used_host, taken, together, start, stop, memory, host, most, most_host, weight):  # type: ignore[no-untyped-def]
    """The first rank of the group of `together` ranks, from `start` to `stop`, that has the least to do, has room, and
    is not taken; -1 where there is none."""
    best, least = -1, np.inf
    for group in range(start, stop, together):
        if taken[group]:
            continue
        key = 0.0
        for rank in range(group, group + together):
            key += load[rank] + weight * used[rank]
            if used[rank] + memory > most or used_host[rank] + host > most_host:
                key = np.inf
        if key < least:
            best, least = group, key
    return best


def balanced(placement: Placement, costs: Costs, capacity: Capacity) -> Placement:
    """The placement with single shards of the slowest rank moved to others, or swapped with theirs, while it helps."""
    tables = np.arange(len(placement.choice))
    time, memory, host = (cost[placement.choice, tables] for cost in (costs.time, costs.memory, costs.host))
    single = costs.place[placement.choice] == RANKS
    table_of = np.concatenate([np.full(len(placement.ranks[t]) if single[t] else 0, t) for t in tables])
    rank_of = np.concatenate([placement.ranks[t] if single[t] else np.empty(0, np.int64) for t in tables])
    used_host = np.zeros(capacity.ranks)
    for t, ranks in enumerate(placement.ranks):
        used_host[ranks] += host[t]
    load, used = placement.time.copy(), placement.memory.copy()
    there = np.zeros((len(tables), capacity.ranks), np.bool_)
    there[table_of, rank_of] = True
    _balance(
        table_of, rank_of, time, memory, host, there, load, used, used_host, capacity.memory, capacity.host,
    )  # fmt: skip
    ends = np.cumsum(np.where(single, [len(ranks) for ranks in placement.ranks], 0))
    moved = [
        np.sort(rank_of[ends[t] - len(ranks) : ends[t]]) if single[t] else ranks
        for t, ranks in enumerate(placement.ranks)
    ]
    return Placement(placement.choice, moved, load, used)


@numba.njit(cache=True)
def _balance(table_of, rank_of, time, memory, host, there, load, used, used_host, most, most_host):  # type: ignore[no-untyped-def]
    """Moves and swaps shards in place, the best one each time, until none makes the slowest rank faster."""
    while True:
        slow = np.argmax(load)
        best, mine, other, target = load[slow] * (1 - 1e-6), -1, -1, -1
        for i in range(len(rank_of)):
            if rank_of[i] != slow:
                continue
            a = table_of[i]
            for rank in range(len(load)):
                peak = max(load[slow] - time[a], load[rank] + time[a])
                room = used[rank] + memory[a] <= most and used_host[rank] + host[a] <= most_host
                if peak < best and room and not there[a, rank]:
                    best, mine, other, target = peak, i, -1, rank
            for j in range(len(rank_of)):
                b, rank = table_of[j], rank_of[j]
                less = time[a] - time[b]
                peak = max(load[slow] - less, load[rank] + less)
                if less <= 0 or rank == slow or peak >= best or there[a, rank] or there[b, slow]:
                    continue
                more, more_host = memory[a] - memory[b], host[a] - host[b]
                room = used[rank] + more <= most and used[slow] - more <= most
                if room and used_host[rank] + more_host <= most_host and used_host[slow] - more_host <= most_host:
                    best, mine, other, target = peak, i, j, rank
        if mine < 0:
            return
        for shard, start, end in ((mine, slow, target), (other, target, slow)):
            if shard >= 0:
                t = table_of[shard]
                rank_of[shard] = end
                there[t, start], there[t, end] = False, True
                load[start], load[end] = load[start] - time[t], load[end] + time[t]
                used[start], used[end] = used[start] - memory[t], used[end] + memory[t]
                used_host[start], used_host[end] = used_host[start] - host[t], used_host[end] + host[t]


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
