"""Assign shards to ranks so that the slowest rank is fast. The sharding of each table is given. Arithmetic only.

Tables with a shard on every rank come first, then tables on whole hosts, then tables on one host, then all others. In
each of these groups the most expensive shards come first. Each shard goes to the rank with the least load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

EVERY_RANK, WHOLE_HOSTS, ANY_RANKS, ONE_HOST = range(4)
"""How the shards of a table are assigned to ranks: one shard to every rank; one shard to every rank of some hosts; each
shard to a different rank; or each shard to a different rank of the same host."""


@dataclass(frozen=True)
class Costs:
    """Costs of C sharding choices for T tables. Time and memory are for the largest shard of a table."""

    time: np.ndarray
    """Milliseconds of a step, [C, T]; infinite if the table does not allow the choice"""
    memory: np.ndarray
    """Bytes on the device, [C, T]"""
    host_memory: np.ndarray
    """Bytes in the memory of the host, [C, T]"""
    shards: np.ndarray
    """Number of shards, [C, T]"""
    ranks_of_shards: np.ndarray
    """EVERY_RANK, WHOLE_HOSTS, ANY_RANKS or ONE_HOST, [C]"""


@dataclass(frozen=True)
class Capacity:
    """The number of ranks and the memory for tables."""

    ranks: int
    """Ranks of all hosts"""
    local_ranks: int
    """Ranks of one host"""
    memory: float
    """Bytes for tables on each device"""
    host_memory: float
    """Bytes for tables in each device's share of host memory"""


@dataclass(frozen=True)
class Placement:
    """A sharding choice for each table, the ranks of its shards, and the load of each rank."""

    choice: np.ndarray
    """Index of the choice of each table, [T]"""
    ranks: list[np.ndarray]
    """Ranks of each table's shards, in the order of the shards"""
    time: np.ndarray
    """Milliseconds of each rank, [ranks]"""
    memory: np.ndarray
    """Bytes on the device of each rank, [ranks]"""

    @property
    def slowest(self) -> float:
        """Milliseconds of the slowest rank."""
        return float(self.time.max())


def pack(costs: Costs, capacity: Capacity, choice: np.ndarray, weight: float = 0.0) -> Placement | None:
    """Return a placement of the shards for the sharding `choice` [T] of the tables; None if they do not fit.

    The load of a rank is its time plus `weight` times its memory.
    """
    tables = np.arange(len(choice))
    time, memory, host = (cost[choice, tables] for cost in (costs.time, costs.memory, costs.host_memory))
    shards, kinds = costs.shards[choice, tables].astype(np.int64), costs.ranks_of_shards[choice]
    first = np.concatenate([[0], np.cumsum(np.where(kinds == EVERY_RANK, 0, shards))])
    ranks = np.empty(first[-1], np.int64)
    order = np.argsort(-(time + weight * memory), kind="stable")
    fits, load, used = _pack(
        order, time, memory, host, shards, kinds, first, ranks,
        capacity.ranks, capacity.local_ranks, capacity.memory, capacity.host_memory, weight,
    )  # fmt: skip
    if not fits:
        return None
    every = np.arange(capacity.ranks)
    of_table = [
        every if kind == EVERY_RANK else np.sort(ranks[first[t] : first[t + 1]]) for t, kind in enumerate(kinds)
    ]
    return Placement(choice, of_table, load, used)


@numba.njit(cache=True)
def _pack(order, time, memory, host, shards, kinds, first, placed, ranks, local, most, most_host, weight):  # type: ignore[no-untyped-def]
    """Write the ranks of table t's shards to `placed` from first[t] on.

    Return whether all shards fit, and the time and the memory of each rank. The caller sorts, and a plain loop finds
    the minimum, so that numba compiles this in a second. `most` and `most_host` limit the bytes on a device and in its
    share of host memory.
    """
    load, used, used_host = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    taken = np.zeros(ranks, np.bool_)
    for kind in (EVERY_RANK, WHOLE_HOSTS, ONE_HOST, ANY_RANKS):
        for t in order:
            if kinds[t] != kind:
                continue
            if kind == EVERY_RANK:
                for rank in range(ranks):
                    load[rank] += time[t]
                    used[rank] += memory[t]
                    used_host[rank] += host[t]
                    if used[rank] > most or used_host[rank] > most_host:
                        return False, load, used
                continue
            # Shards go to groups of neighbouring ranks, `group_size` shards at once.
            group_size = local if kind != ANY_RANKS else 1
            start, stop = 0, ranks
            if kind == ONE_HOST:
                start = _least_loaded(load, used, used_host, taken, local, 0, ranks, 0.0, 0.0, most, most_host, weight)
                if start < 0:
                    return False, load, used
                group_size, stop = 1, start + local
            for part in range(shards[t] // group_size):
                group = _least_loaded(
                    load, used, used_host, taken, group_size, start, stop, memory[t], host[t], most, most_host, weight
                )
                if group < 0:
                    return False, load, used
                taken[group] = True
                for rank in range(group, group + group_size):
                    placed[first[t] + part * group_size + rank - group] = rank
            for part in range(shards[t]):
                rank = placed[first[t] + part]
                taken[rank] = False
                load[rank] += time[t]
                used[rank] += memory[t]
                used_host[rank] += host[t]
    return True, load, used


@numba.njit(cache=True)
def _least_loaded(load, used, used_host, taken, size, start, stop, memory, host, most, most_host, weight):  # type: ignore[no-untyped-def]
    """Return the first rank of the group with the least load, or -1 if no group has room.

    The ranks in [start, stop) are divided into groups of `size` ranks. Groups in `taken` are skipped.
    """
    best, least = -1, np.inf
    for group in range(start, stop, size):
        if taken[group]:
            continue
        key = 0.0
        for rank in range(group, group + size):
            key += load[rank] + weight * used[rank]
            if used[rank] + memory > most or used_host[rank] + host > most_host:
                key = np.inf
        if key < least:
            best, least = group, key
    return best


def balance(placement: Placement, costs: Costs, capacity: Capacity) -> Placement:
    """Move and swap shards of ANY_RANKS tables until the slowest rank gets no faster; return the new placement."""
    tables = np.arange(len(placement.choice))
    time, memory, host = (cost[placement.choice, tables] for cost in (costs.time, costs.memory, costs.host_memory))
    single = costs.ranks_of_shards[placement.choice] == ANY_RANKS
    table_of = np.concatenate([np.full(len(placement.ranks[t]) if single[t] else 0, t) for t in tables])
    rank_of = np.concatenate([placement.ranks[t] if single[t] else np.empty(0, np.int64) for t in tables])
    used_host = np.zeros(capacity.ranks)
    for t, ranks in enumerate(placement.ranks):
        used_host[ranks] += host[t]
    load, used = placement.time.copy(), placement.memory.copy()
    has_shard = np.zeros((len(tables), capacity.ranks), np.bool_)
    has_shard[table_of, rank_of] = True
    _balance(
        table_of, rank_of, time, memory, host, has_shard, load, used, used_host, capacity.memory, capacity.host_memory,
    )  # fmt: skip
    ends = np.cumsum(np.where(single, [len(ranks) for ranks in placement.ranks], 0))
    moved = [
        np.sort(rank_of[ends[t] - len(ranks) : ends[t]]) if single[t] else ranks
        for t, ranks in enumerate(placement.ranks)
    ]
    return Placement(placement.choice, moved, load, used)


@numba.njit(cache=True)
def _balance(table_of, rank_of, time, memory, host, has_shard, load, used, used_host, most, most_host):  # type: ignore[no-untyped-def]
    """Move and swap shards in place, each time in the best way, until the slowest rank gets no faster."""
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
                if peak < best and room and not has_shard[a, rank]:
                    best, mine, other, target = peak, i, -1, rank
            for j in range(len(rank_of)):
                b, rank = table_of[j], rank_of[j]
                less = time[a] - time[b]
                peak = max(load[slow] - less, load[rank] + less)
                if less <= 0 or rank == slow or peak >= best or has_shard[a, rank] or has_shard[b, slow]:
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
                has_shard[t, start], has_shard[t, end] = False, True
                load[start], load[end] = load[start] - time[t], load[end] + time[t]
                used[start], used[end] = used[start] - memory[t], used[end] + memory[t]
                used_host[start], used_host[end] = used_host[start] - host[t], used_host[end] + host[t]
