"""Ranks for the shards of tables that have chosen their ways, so that the slowest rank is fast: arithmetic alone.

Shards that every rank has are laid first, then those that all ranks of a machine have, then single ones, the longest
first, each on the rank that has the least to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

EVERY, MACHINES, RANKS, ONE_MACHINE = range(4)
"""Where the shards of a table go: one to every rank, one to every rank of some machines, each to a rank of its own, or
each to a rank of its own on one machine"""


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
