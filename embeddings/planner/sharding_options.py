"""The ways to shard a table, and which of them are open to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.types import Topology

from asymdiffrec.embeddings.planner.planned_tables import PlannedTable

COLUMN_PARTS = (1, 2, 3, 4, 6, 8, 12, 16)
NARROWEST = 32
"""Columns of a part, at least, unless a table is asked to be split"""
CACHED = (0.05, 0.1, 0.2, 0.4)
"""Shares of a table's rows that a cache on the device holds"""


@dataclass(frozen=True)
class Way:
    """A sharding type, a kernel, how many parts the columns are in, and the share of the rows that is cached."""

    sharding: str
    kernel: str
    columns: int = 1
    cached: float | None = None

    def shards(self, topology: Topology) -> int:
        every = {"data_parallel": topology.world_size, "row_wise": topology.world_size}
        machine = {"table_row_wise": topology.local_world_size, "grid_shard": topology.local_world_size}
        return every.get(self.sharding, machine.get(self.sharding, 1) * self.columns)

    def row_parts(self, topology: Topology) -> int:
        return 1 if self.sharding == "data_parallel" else self.shards(topology) // self.columns

    def is_open(self, table: PlannedTable, topology: Topology) -> bool:
        """Whether a table can be sharded in this way: as it allows, on ranks that exist, with rows in every part."""
        machines = topology.world_size // topology.local_world_size
        # Ranks, or machines, that columns can be divided among: where there is one, one part is what splitting means.
        most = {
            "column_wise": topology.world_size,
            "table_column_wise": topology.local_world_size,
            "grid_shard": machines,
        }.get(self.sharding, 1)
        least = min(2, most)
        narrowest = min(NARROWEST, table.dim // 2) if table.split else NARROWEST
        return (
            self.sharding in table.sharding
            and (self.sharding == "data_parallel" or self.kernel in table.kernels)
            and (table.parts is None or self.shards(topology) == table.parts)
            and least <= self.columns <= most
            and (self.columns == 1 or (table.dim % (4 * self.columns) == 0 and table.dim // self.columns >= narrowest))
            and have_rows(table.rows, self.row_parts(topology))
            and (table.block == 1 or table.rows % (table.block * self.row_parts(topology)) == 0)
        )


def have_rows(rows: int, parts: int) -> bool:
    """Whether TorchRec's split, ceil(rows / parts) to each part until none are left, leaves some for the last one.

    FBGEMM's rowwise_adagrad on cpu mistakes an empty table for its neighbour.
    """
    return -(-rows // parts) * (parts - 1) < rows


def ways(kernels: Sequence[str]) -> list[Way]:
    """All ways to shard a table with some kernels."""
    found = [Way("data_parallel", "dense")]
    for kernel in kernels:
        for cached in CACHED if kernel == "fused_uvm_caching" else (None,):
            found += [Way(kind, kernel, cached=cached) for kind in ("table_wise", "row_wise", "table_row_wise")]
            splits = ("column_wise", "table_column_wise", "grid_shard")
            found += [Way(kind, kernel, parts, cached) for kind in splits for parts in COLUMN_PARTS]
    return found
