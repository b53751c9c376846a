"""Managed collision: which ids of an id space without bound have a row of a table to themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from pydantic import Field
from torchrec.modules.mc_modules import ManagedCollisionModule
from torchrec.sparse.jagged_tensor import JaggedTensor

from asymdiffrec.base import Config
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.managed.slots import SLOT_BYTES, Eviction, Slots

WAYS = 64
"""Rows of a set. Each id has one set and may have any row of it but the last, which is shared by all ids of the set
that have none."""

ID_BITS = 62
"""Ids are below 2^62."""

COUNTS = ("insertions", "evictions", "failed_inserts", "collisions")
"""What is counted in training: ids that got a row; ids that lost theirs to one; times that an admitted id got no row,
as all of its set are held by ids that matter more; look-ups that a shared row answered."""


class ManagedConfig(Config):
    """The `tables.managed:` section of the job file, for the tables with `collision: managed`."""

    admit_after: int = Field(2, gt=0, description="sightings after which an id gets a row of its own")
    eviction: Eviction = Field(
        "lfu",
        description="which id loses its row to a new one: that seen least often (lfu), or least recently (lru)",
    )


def id_range(rows: int) -> int:
    """Ids of a managed table are in [0, id_range): a hash to so many values has next to no collisions.

    It is a multiple of the number of sets, so that sets, and TorchRec's equal parts of the range for each rank, are
    made of whole ids.
    """
    return sets_of(rows) << shift_of(rows)


def with_id_ranges(schema: Schema, managed: Collection[str]) -> Schema:
    """The schema whose ids of managed tables keep apart, whatever rows there are."""
    tables = [table for table in schema.tables.values() if table.name in managed]
    return replace(schema, id_ranges={table.name: id_range(table.num_embeddings) for table in tables})


def sets_of(rows: int) -> int:
    return rows // WAYS


def shift_of(rows: int) -> int:
    """The bits of an id below those of its set."""
    return ID_BITS - (sets_of(rows) - 1).bit_length()


def id_bytes(rows: int, config: ManagedConfig) -> int:
    """Memory of the ids, beside the weights, for some rows."""
    stores = 1 if config.admit_after == 1 else 2
    return stores * sets_of(rows) * (WAYS - 1) * SLOT_BYTES


class ManagedIds(ManagedCollisionModule):
    """The ids of one table, or of a row-wise shard of it, as TorchRec's managed collision takes it: ids to rows.

    In training each batch is first counted, and what it shows decides which ids get rows, and which lose theirs; a row
    that changes hands is passed to `reset(rows, ids)` before it is read. In evaluation nothing changes. An id without a
    row gets the shared row of its set: it is not missing, and what the model may know about it is what the rare ids
    that share the row have taught it.

    All of it depends on the ids of a set and on the order of steps alone, so on no number of ranks, and a shard is a
    range of sets: a checkpoint loads on any number of ranks that divides them. Of TorchRec 1.8's own modules neither
    does this. MCHManagedCollisionModule evicts from all rows of a rank, so differently on other numbers of ranks,
    refuses on two ranks what one rank saved, loses at a checkpoint what it saw since it last evicted, and sorts the
    whole table to evict. HashZchManagedCollisionModule evicts by the clock, and on CPUs it cannot train.
    """

    def __init__(
        self,
        table: str,
        rows: int,
        config: ManagedConfig,
        device: torch.device,
        part: tuple[int, int] | None = None,
    ) -> None:
        """`rows` are those of the whole table; rows [`part[0]`, `part[1]`) are held here, all of them by default."""
        self._part = part or (0, rows)
        super().__init__(device, list(self._part))
        self.table, self._rows, self._config = table, rows, config
        first, held = self._part[0] // WAYS, (self._part[1] - self._part[0]) // WAYS
        place = (held, WAYS - 1, shift_of(rows), first)
        self.held = Slots(*place, config.eviction, device)
        self.candidates = Slots(*place, "lru", device) if config.admit_after > 1 else None
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64, device=device), persistent=False)
        self.register_buffer("counted", torch.zeros(len(COUNTS), dtype=torch.int64, device=device), persistent=False)
        self.reset: Callable[[torch.Tensor, torch.Tensor], None] = lambda rows, ids: None

    step: torch.Tensor
    counted: torch.Tensor

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """In training, give rows to the ids [V] that earn one."""
        if self.training:
            self.step += 1
            for feature in features.values():
                self._learn(*torch.unique(feature.values(), return_counts=True))
        return features

    @torch.no_grad()
    def _learn(self, ids: torch.Tensor, counts: torch.Tensor) -> None:
        """`ids`, ascending, came `counts` times in this step."""
        slots = self.held.find(ids)
        known = slots >= 0
        self.held.touch(slots[known], counts[known], self.step)
        ids, counts = ids[~known], counts[~known]
        if self.candidates is not None:
            ids, counts = self._admitted(self.candidates, ids, counts)
        slots, evicted = self.held.insert(ids, counts, self.step)
        placed = slots >= 0
        ids, slots = ids[placed], slots[placed]
        if self.candidates is not None:
            self.candidates.remove(self.candidates.find(ids))
        self.reset(_row(slots), ids)
        self.counted[:3] += torch.stack([placed.sum(), evicted.sum(), (~placed).sum()])

    def _admitted(
        self, candidates: Slots, ids: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of ids without a row that were seen often enough, and how often that was.

        Sightings are remembered as long as the id is among the last WAYS - 1 new ones of its set.
        """
        slots = candidates.find(ids)
        known = slots >= 0
        candidates.touch(slots[known], counts[known], self.step)
        counts[known] = candidates.counts.view(-1)[slots[known]].to(counts.dtype)
        candidates.insert(ids[~known], counts[~known], self.step)
        admitted = counts >= self._config.admit_after
        return ids[admitted], counts[admitted]

    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,
        write_weights: torch.Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """Ids [V] to rows of the whole table [V]."""
        return {name: self._remapped(feature) for name, feature in features.items()}

    @torch.no_grad()
    def _remapped(self, feature: JaggedTensor) -> JaggedTensor:
        ids = feature.values()
        slots = self.held.find(ids)
        if self.training:
            self.counted[3] += (slots < 0).sum()
        rows = torch.where(slots >= 0, _row(slots), self.held.sets(ids) * WAYS + WAYS - 1) + self._part[0]
        return JaggedTensor(
            rows, lengths=feature.lengths(), offsets=feature.offsets(), weights=feature.weights_or_none()
        )

    def forward(self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True) -> dict[str, JaggedTensor]:
        return self.remap(self.profile(features))

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        return features

    def evict(self) -> torch.Tensor | None:
        """Nothing is left to do for TorchRec: rows are reset as they change hands."""
        return None

    def output_size(self) -> int:
        return self._part[1] - self._part[0]

    def input_size(self) -> int:
        return id_range(self._rows)

    def buckets(self) -> int:
        return sets_of(self._rows)

    def open_slots(self) -> torch.Tensor:
        return (self.held.counts == 0).sum().unsqueeze(0)

    def validate_state(self) -> None:
        pass

    def rebuild_with_output_id_range(
        self, output_id_range: tuple[int, int], output_segments: list[int], device: torch.device | None = None
    ) -> ManagedIds:
        """The module of a row-wise shard."""
        return ManagedIds(self.table, self._rows, self._config, device or self.device, output_id_range)

    def state(self) -> dict[str, torch.Tensor]:
        """The live tensors that make up the map, [sets held here, ways], by name; of them `ids` is all that a look-up
        needs."""
        state = {"ids": self.held.ids, "counts": self.held.counts, "seen": self.held.seen}
        if self.candidates is not None:
            for name, tensor in self.candidates.named_buffers():
                state[f"candidate_{name}"] = tensor
        return state

    def take_counts(self) -> torch.Tensor:
        """`COUNTS` since they were last taken, and how many ids have a row now, [5] int64, of this shard."""
        counts = torch.cat([self.counted, (self.held.counts > 0).sum().unsqueeze(0)])
        self.counted.zero_()
        return counts


def _row(slots: torch.Tensor) -> torch.Tensor:
    """The row of a slot, both counted from the first here: a set has one row more than it has slots."""
    return slots + torch.div(slots, WAYS - 1, rounding_mode="floor")
