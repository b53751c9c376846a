"""Managed collision: give the frequent ids of an unbounded id space separate rows of a table."""

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

ROWS_PER_SET = 64
"""Number of rows of a set. Each id belongs to one set. It can have any row of the set except the last one. All ids of
the set that have no separate row share the last row."""

ID_BITS = 62
"""Ids are below 2^62."""

COUNTS = ("insertions", "evictions", "failed_inserts", "collisions")
"""Counters of training: ids that got a row; ids that lost their row to another id; admitted ids that got no row,
because all ids of their set have a higher priority; look-ups that read a shared row."""


class ManagedConfig(Config):
    """The `tables.managed:` section of the job file, for all tables with `collision: managed`."""

    admit_after: int = Field(2, gt=0, description="number of occurrences after which an id gets a separate row")
    eviction: Eviction = Field(
        "lfu", description="which id loses its row to a new id: lfu: the least frequent id; lru: the least recent id"
    )


def id_range(rows: int) -> int:
    """Return the size of the id range of a managed table with `rows` rows. Hashes into this range rarely collide.

    It is a multiple of the number of sets, so every set gets the same number of ids. TorchRec divides the range equally
    among the ranks, so every rank gets the ids of its sets.
    """
    return _num_sets(rows) << _set_shift(rows)


def with_id_ranges(schema: Schema, managed: Collection[str]) -> Schema:
    """Return the schema with an id range for each table in `managed`. Other tables hash ids to their rows."""
    tables = [table for table in schema.tables.values() if table.name in managed]
    return replace(schema, id_ranges={table.name: id_range(table.num_embeddings) for table in tables})


def _num_sets(rows: int) -> int:
    return rows // ROWS_PER_SET


def _set_shift(rows: int) -> int:
    """Return the number of low bits of an id that do not select its set."""
    return ID_BITS - (_num_sets(rows) - 1).bit_length()


def id_bytes(rows: int, config: ManagedConfig) -> int:
    """Return the bytes that the ids of `rows` rows take, without the weights."""
    stores = 1 if config.admit_after == 1 else 2
    return stores * _num_sets(rows) * (ROWS_PER_SET - 1) * SLOT_BYTES


class ManagedIds(ManagedCollisionModule):
    """The map from ids to rows of one table, or of a row-wise shard of it; a managed collision module of TorchRec.

    In training the ids of each batch are counted first. The counts decide which ids get a row and which ids lose their
    row. A row that changes its id is passed to `on_new_rows(rows, ids)` before it is read. In evaluation nothing
    changes. An id without a separate row uses the shared row of its set. It is not treated as missing: the shared row
    was trained on the rare ids that share it.

    The result depends only on the ids of a set and on the order of steps, so it does not depend on the number of ranks.
    A shard is a range of sets, so a checkpoint loads on any number of ranks that divides the number of sets.

    TorchRec 1.8's modules cannot do this. MCHManagedCollisionModule evicts from all rows of a rank, so the result
    depends on the number of ranks. It does not load on two ranks a checkpoint that one rank saved. Its checkpoints lose
    the counts since the last eviction. It sorts the whole table to evict. HashZchManagedCollisionModule evicts by wall
    time and cannot train on CPUs.
    """

    def __init__(
        self,
        table: str,
        rows: int,
        config: ManagedConfig,
        device: torch.device,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Create an empty map.

        rows: the number of rows of the whole table. part: the range of rows of this shard, or None for all rows.
        """
        self._part = part or (0, rows)
        super().__init__(device, list(self._part))
        self.table, self._rows, self._config = table, rows, config
        first_set, num_sets = self._part[0] // ROWS_PER_SET, (self._part[1] - self._part[0]) // ROWS_PER_SET
        sizes = (num_sets, ROWS_PER_SET - 1, _set_shift(rows), first_set)
        self.slots = Slots(*sizes, config.eviction, device)
        self.candidates = Slots(*sizes, "lru", device) if config.admit_after > 1 else None
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64, device=device), persistent=False)
        self.register_buffer("counters", torch.zeros(len(COUNTS), dtype=torch.int64, device=device), persistent=False)
        self.on_new_rows: Callable[[torch.Tensor, torch.Tensor], None] = lambda rows, ids: None

    step: torch.Tensor
    counters: torch.Tensor

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Return the features unchanged; in training, first count the ids [V] and give rows to the admitted ids."""
        if self.training:
            self.step += 1
            for feature in features.values():
                self._update(*torch.unique(feature.values(), return_counts=True))
        return features

    @torch.no_grad()
    def _update(self, ids: torch.Tensor, counts: torch.Tensor) -> None:
        """Count `ids` (ascending, distinct), which occurred `counts` times in this step; give rows to admitted ids."""
        slots = self.slots.find(ids)
        has_row = slots >= 0
        self.slots.touch(slots[has_row], counts[has_row], self.step)
        ids, counts = ids[~has_row], counts[~has_row]
        if self.candidates is not None:
            ids, counts = self._admit(self.candidates, ids, counts)
        slots, evicted = self.slots.insert(ids, counts, self.step)
        has_row = slots >= 0
        ids, slots = ids[has_row], slots[has_row]
        if self.candidates is not None:
            self.candidates.remove(self.candidates.find(ids))
        self.on_new_rows(_row(slots), ids)
        self.counters[:3] += torch.stack([has_row.sum(), evicted.sum(), (~has_row).sum()])

    def _admit(self, candidates: Slots, ids: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids that occurred at least `admit_after` times, and their counts. `ids` have no row yet.

        Occurrences are remembered for the ROWS_PER_SET - 1 most recently seen ids of each set that have no row.
        """
        slots = candidates.find(ids)
        is_candidate = slots >= 0
        candidates.touch(slots[is_candidate], counts[is_candidate], self.step)
        counts[is_candidate] = candidates.counts.view(-1)[slots[is_candidate]].to(counts.dtype)
        candidates.insert(ids[~is_candidate], counts[~is_candidate], self.step)
        admitted = counts >= self._config.admit_after
        return ids[admitted], counts[admitted]

    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,
        write_weights: torch.Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """Map ids [V] to rows of the whole table [V]."""
        return {name: self._remap(feature) for name, feature in features.items()}

    @torch.no_grad()
    def _remap(self, feature: JaggedTensor) -> JaggedTensor:
        ids = feature.values()
        slots = self.slots.find(ids)
        if self.training:
            self.counters[3] += (slots < 0).sum()
        shared_row = self.slots.sets(ids) * ROWS_PER_SET + ROWS_PER_SET - 1
        rows = torch.where(slots >= 0, _row(slots), shared_row) + self._part[0]
        return JaggedTensor(
            rows, lengths=feature.lengths(), offsets=feature.offsets(), weights=feature.weights_or_none()
        )

    def forward(self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True) -> dict[str, JaggedTensor]:
        """Count ids [V] in training, and map them to rows [V]."""
        return self.remap(self.profile(features))

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Return the features unchanged; TorchRec calls this before it sends ids to other ranks."""
        return features

    def evict(self) -> torch.Tensor | None:
        """Return None, so TorchRec resets no rows: `on_new_rows` resets a row when its id changes."""
        return None

    def output_size(self) -> int:
        """Return the number of rows of this shard."""
        return self._part[1] - self._part[0]

    def input_size(self) -> int:
        """Return the number of possible ids."""
        return id_range(self._rows)

    def buckets(self) -> int:
        """Return the number of sets of the whole table. TorchRec makes shards of whole sets."""
        return _num_sets(self._rows)

    def open_slots(self) -> torch.Tensor:
        """Return the number of rows of this shard without an id, [1]."""
        return (self.slots.counts == 0).sum().unsqueeze(0)

    def validate_state(self) -> None:
        """Do nothing: this module has no state that TorchRec must check."""

    def rebuild_with_output_id_range(
        self, output_id_range: tuple[int, int], output_segments: list[int], device: torch.device | None = None
    ) -> ManagedIds:
        """Return an empty module for a row-wise shard."""
        return ManagedIds(self.table, self._rows, self._config, device or self.device, output_id_range)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the live tensors of the map by name, each [sets of this shard, ways]. A look-up needs only `ids`."""
        state = {"ids": self.slots.ids, "counts": self.slots.counts, "seen": self.slots.seen}
        if self.candidates is not None:
            for name, tensor in self.candidates.named_buffers():
                state[f"candidate_{name}"] = tensor
        return state

    def take_counts(self) -> torch.Tensor:
        """Return the COUNTS of this shard since the last call, and the number of ids that have a row now, [5] int64."""
        counts = torch.cat([self.counters, (self.slots.counts > 0).sum().unsqueeze(0)])
        self.counters.zero_()
        return counts


def _row(slots: torch.Tensor) -> torch.Tensor:
    """Return the row of each slot, both counted from the start of this shard. A set has one row more than slots."""
    return slots + torch.div(slots, ROWS_PER_SET - 1, rounding_mode="floor")
