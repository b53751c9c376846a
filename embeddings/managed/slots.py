"""A set-associative store of ids: each id has one set of places where it can lie, and is looked for nowhere else."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

Eviction = Literal["lfu", "lru"]

FREE = -1
"""In place of an id; ids themselves are not negative."""

CHUNK = 1 << 16
"""Ids that are looked for at a time: each is compared with all places of its set."""

COUNT_BITS, SEEN_BITS, WAY_BITS = 26, 31, 6
"""What a score is made of: 2^26 sightings and 2^31 steps are told apart, in sets of up to 64 places."""

SLOT_BYTES = 16
"""Memory of a place: the id, how often it was seen, and when it was last seen."""


class Inserted(NamedTuple):
    slots: torch.Tensor
    """[V] int64, where each id went; -1 where it found no place"""
    evicted: torch.Tensor
    """[V] bool, whether another id had to leave for it"""


class Slots(nn.Module):
    """Ids in `ways` places for each of `sets` sets; `first_set` is the first of those that are held here.

    The set of an id are its bits from `shift` on. So what becomes of an id depends on the ids of its set alone, and
    never on which other sets are held beside it. Slot s is place s % ways of set first_set + s // ways.

    A newcomer takes a free place, or that of the id that matters least if it matters more: by how often ids were seen,
    then by when (`lfu`), or the other way round (`lru`).
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
        return int(self.ids.shape[1])

    def sets(self, ids: torch.Tensor) -> torch.Tensor:
        """The set of each id, [V] int64, counted from the first that is held here."""
        return (ids >> self._shift) - self._first

    def find(self, ids: torch.Tensor) -> torch.Tensor:
        """The slot of each id [V], -1 where it has none."""
        return torch.cat([self._find(part) for part in ids.split(CHUNK)]) if len(ids) else ids.clone()

    def _find(self, ids: torch.Tensor) -> torch.Tensor:
        sets = self.sets(ids)
        there, way = (self.ids[sets] == ids.unsqueeze(1)).max(dim=1)
        return torch.where(there, sets * self.ways + way, -1)

    def touch(self, slots: torch.Tensor, counts: torch.Tensor, now: torch.Tensor) -> None:
        """The ids in distinct slots were seen `counts` times more, the last time `now`."""
        total = self.counts.view(-1)[slots] + counts  # in int64
        self.counts.view(-1)[slots] = total.clamp(max=2**COUNT_BITS - 1).to(torch.int32)
        self.seen.view(-1)[slots] = now.to(torch.int32)

    def remove(self, slots: torch.Tensor) -> None:
        self.ids.view(-1)[slots] = FREE
        self.counts.view(-1)[slots] = 0
        self.seen.view(-1)[slots] = 0

    def insert(self, ids: torch.Tensor, counts: torch.Tensor, now: torch.Tensor) -> Inserted:
        """Find places for distinct ids [V], ascending and without one yet, that were seen `counts` times, last `now`.

        Of the newcomers to a set, those that were seen most often come first, and among equals the smallest id.
        """
        found = Inserted(torch.full_like(ids, -1), torch.zeros_like(ids, dtype=torch.bool))
        if not len(ids):
            return found
        order = torch.argsort(counts, descending=True, stable=True)
        order = order[torch.argsort(self.sets(ids[order]), stable=True)]
        sets, score = self.sets(ids[order]), self._score(counts[order], now.expand(len(ids)))
        place = torch.arange(len(ids), device=ids.device) - torch.searchsorted(sets, sets)  # among the set's newcomers
        ways = torch.arange(self.ways, device=ids.device)
        held = self._score(self.counts[sets], self.seen[sets]) | ways
        nth = place.clamp(max=self.ways - 1)
        least = held.topk(int(nth.max()) + 1, largest=False).values.gather(1, nth.unsqueeze(1)).squeeze(1)
        wins = (place < self.ways) & (score > least)
        slots = sets * self.ways + (least & (2**WAY_BITS - 1))
        for kept, new in ((self.ids, ids), (self.counts, counts), (self.seen, now.expand(len(ids)))):
            kept.view(-1)[slots[wins]] = new[order][wins].to(kept.dtype)
        found.slots[order] = torch.where(wins, slots, -1)
        found.evicted[order] = wins & (least >> WAY_BITS > 0)
        return found

    def _score(self, counts: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """How much ids matter, int64; that of a free place is 0, less than that of any id. The lowest bits are left
        free, for the way: so the scores of a set are distinct."""
        first, second, bits = (counts, seen, SEEN_BITS) if self._eviction == "lfu" else (seen, counts, COUNT_BITS)
        return ((first.to(torch.int64) << bits) | second) << WAY_BITS
