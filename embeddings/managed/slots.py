"""A set-associative store of ids: each id belongs to one set of slots and is stored in a slot of it or nowhere."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

Eviction = Literal["lfu", "lru"]

FREE = -1
"""Value of a slot without an id; ids are not negative."""

MAX_IDS_PER_LOOKUP = 1 << 16
"""Ids that are looked up at a time: each is compared with all slots of its set."""

COUNT_BITS, SEEN_BITS, WAY_BITS = 26, 31, 6
"""Bits of a score: it distinguishes 2^26 counts and 2^31 steps, in sets of up to 64 slots."""

SLOT_BYTES = 16
"""Memory of a slot: the id, its count, and the step when it was last seen."""


class Inserted(NamedTuple):
    """Result of `Slots.insert`."""

    slots: torch.Tensor
    """[V] int64, the slot of each id; -1 if it got none"""
    evicted: torch.Tensor
    """[V] bool, whether another id lost the slot"""


class Slots(nn.Module):
    """Slots for ids: `sets` sets of `ways` slots, a range of all sets that starts at set `first_set`.

    The set of an id is the id without its lowest `shift` bits. So the fate of an id depends on the ids of its set only,
    and not on which other sets are stored here. Slot s is slot s % ways of set first_set + s // ways.

    A new id takes a free slot, or the slot of the id with the lowest priority if its own priority is higher. `lfu`
    orders ids by count, then by the step when they were last seen; `lru` the other way round.
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
        """Return the set of each id, [V] int64, counted from the first set that is stored here."""
        return (ids >> self._shift) - self._first

    def find(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the slot of each id [V], -1 if it has none."""
        if not len(ids):
            return ids.clone()
        return torch.cat([self._find(part) for part in ids.split(MAX_IDS_PER_LOOKUP)])

    def _find(self, ids: torch.Tensor) -> torch.Tensor:
        sets = self.sets(ids)
        is_stored, way = (self.ids[sets] == ids.unsqueeze(1)).max(dim=1)
        return torch.where(is_stored, sets * self.ways + way, -1)

    def touch(self, slots: torch.Tensor, counts: torch.Tensor, now: torch.Tensor) -> None:
        """Record that the ids in distinct slots occurred `counts` more times, the last time in step `now`."""
        total = self.counts.view(-1)[slots] + counts  # in int64
        self.counts.view(-1)[slots] = total.clamp(max=2**COUNT_BITS - 1).to(torch.int32)
        self.seen.view(-1)[slots] = now.to(torch.int32)

    def remove(self, slots: torch.Tensor) -> None:
        """Free the slots."""
        self.ids.view(-1)[slots] = FREE
        self.counts.view(-1)[slots] = 0
        self.seen.view(-1)[slots] = 0

    def insert(self, ids: torch.Tensor, counts: torch.Tensor, now: torch.Tensor) -> Inserted:
        """Insert distinct ids [V], ascending and without a slot, that occurred `counts` times, last in step `now`.

        New ids of one set are inserted in the order of their counts, the most frequent first, and then of the ids.
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
        """Return the priority of ids, int64. A free slot has 0, less than any id.

        The lowest bits are left for the number of the slot in its set, so that the scores of a set are distinct.
        """
        first, second, bits = (counts, seen, SEEN_BITS) if self._eviction == "lfu" else (seen, counts, COUNT_BITS)
        return ((first.to(torch.int64) << bits) | second) << WAY_BITS
