"""A set-associative store of ids: each id belongs to one set of slots, and only these slots can store it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

Eviction = Literal["lfu", "lru"]

FREE = -1
"""Value of a slot without an id; ids are not negative."""

MAX_IDS_PER_LOOKUP = 1 << 16
"""Ids that are looked up at a time. This bounds memory: each id is compared with all slots of its set."""

COUNT_BITS, SEEN_BITS, WAY_BITS = 26, 31, 6
"""Bits of a score for the count, the step and the slot: up to 2^26 counts, 2^31 steps and 64 slots in a set."""

SLOT_BYTES = 16
"""Bytes of a slot: the id, its count, and the step in which it was last seen."""


class Inserted(NamedTuple):
    """Result of `Slots.insert`."""

    slots: torch.Tensor
    """[V] int64, the slot of each id, or -1 for an id that got no slot"""
    evicted: torch.Tensor
    """[V] bool, whether another id was removed from the slot"""


class Slots(nn.Module):
    """A store of `sets` sets with `ways` slots each. The first set has the number `first_set` in the whole table.

    The number of an id's set is the id without its lowest `shift` bits. Whether an id is stored depends only on the ids
    of its set, not on the other sets of this shard. Slot s is slot s % ways of set first_set + s // ways.

    A new id takes a free slot. If its set has no free slot, it replaces the id with the lowest priority, if the new id
    has a higher priority. `lfu` orders ids by count, and equal counts by the step in which they were last seen. `lru`
    orders ids by the step, and equal steps by count.
    """

    ids: torch.Tensor
    counts: torch.Tensor
    seen: torch.Tensor

    def __init__(
        self, sets: int, ways: int, shift: int, first_set: int, eviction: Eviction, device: torch.device
    ) -> None:
        super().__init__()
        self._shift, self._first, self._eviction = shift, first_set, eviction
        self.register_buffer("ids", torch.full((sets, ways), FREE, device=device), persistent=False)
        for name in ("counts", "seen"):
            self.register_buffer(name, torch.zeros(sets, ways, dtype=torch.int32, device=device), persistent=False)

    @property
    def ways(self) -> int:
        """Number of slots of a set."""
        return int(self.ids.shape[1])

    def sets(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the set of each id, [V] int64, counted from the first set of this shard."""
        return (ids >> self._shift) - self._first

    def find(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the slot of each id [V], or -1 for an id that is not stored."""
        if not len(ids):
            return ids.clone()
        return torch.cat([self._find(part) for part in ids.split(MAX_IDS_PER_LOOKUP)])

    def _find(self, ids: torch.Tensor) -> torch.Tensor:
        sets = self.sets(ids)
        is_stored, way = (self.ids[sets] == ids.unsqueeze(1)).max(dim=1)
        return torch.where(is_stored, sets * self.ways + way, -1)

    def touch(self, slots: torch.Tensor, counts: torch.Tensor, now: torch.Tensor) -> None:
        """Record that the ids in `slots` (distinct) occurred `counts` more times, the last time in step `now`."""
        total = self.counts.view(-1)[slots] + counts  # in int64
        self.counts.view(-1)[slots] = total.clamp(max=2**COUNT_BITS - 1).to(torch.int32)
        self.seen.view(-1)[slots] = now.to(torch.int32)

    def remove(self, slots: torch.Tensor) -> None:
        """Free the slots."""
        self.ids.view(-1)[slots] = FREE
        self.counts.view(-1)[slots] = 0
        self.seen.view(-1)[slots] = 0

    def insert(self, ids: torch.Tensor, counts: torch.Tensor, now: torch.Tensor) -> Inserted:
        """Insert ids [V]: distinct, ascending, not stored yet.

        `counts` [V] says how often each id occurred, `now` is the current step. New ids of one set are inserted by
        descending count, and ids with equal counts by ascending id.
        """
        inserted = Inserted(torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool))
        if not len(ids):
            return inserted
        order = torch.argsort(counts, descending=True, stable=True)
        order = order[torch.argsort(self.sets(ids[order]), stable=True)]
        sets, score = self.sets(ids[order]), self._score(counts[order], now.expand(len(ids)))
        # The rank of each id among the new ids of its set.
        rank = torch.arange(len(ids), device=ids.device) - torch.searchsorted(sets, sets)
        ways = torch.arange(self.ways, device=ids.device)
        stored = self._score(self.counts[sets], self.seen[sets]) | ways
        nth = rank.clamp(max=self.ways - 1)
        # The id of rank r competes with the slot of the r-th lowest score.
        lowest = stored.topk(int(nth.max()) + 1, largest=False).values.gather(1, nth.unsqueeze(1)).squeeze(1)
        wins = (rank < self.ways) & (score > lowest)
        slots = sets * self.ways + (lowest & (2**WAY_BITS - 1))
        for target, values in ((self.ids, ids), (self.counts, counts), (self.seen, now.expand(len(ids)))):
            target.view(-1)[slots[wins]] = values[order][wins].to(target.dtype)
        inserted.slots[order] = torch.where(wins, slots, -1)
        inserted.evicted[order] = wins & (lowest >> WAY_BITS > 0)
        return inserted

    def _score(self, counts: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Return the priority of ids, int64. A free slot has priority 0, lower than any id.

        The lowest WAY_BITS bits are zero. `insert` writes the number of the slot into them, so that all scores of a set
        differ.
        """
        first, second, bits = (counts, seen, SEEN_BITS) if self._eviction == "lfu" else (seen, counts, COUNT_BITS)
        return ((first.to(torch.int64) << bits) | second) << WAY_BITS
