"""The ways to shard a table, and the check whether a table allows a way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.types import Topology

from asymdiffrec.embeddings.planner.planned_tables import PlannedTable

COLUMN_PARTS = (1, 2, 3, 4, 6, 8, 12, 16)
MIN_SHARD_COLUMNS = 32
"""Smallest width of a shard, unless the job sets a sharding type that splits columns."""
CACHE_LOAD_FACTORS = (0.05, 0.1, 0.2, 0.4)
"""Shares of a table's rows in the device's cache. The planner tries each of them."""


@dataclass(frozen=True)
class ShardingChoice:
    """A sharding type and a kernel, with the number of column parts and the share of the rows in the cache."""

    sharding_type: str
    compute_kernel: str
    column_parts: int = 1
    cache_load_factor: float | None = None

    def num_shards(self, topology: Topology) -> int:
        """Return the number of shards of a table."""
        every_rank = {"data_parallel": topology.world_size, "row_wise": topology.world_size}
        every_local_rank = {"table_row_wise": topology.local_world_size, "grid_shard": topology.local_world_size}
        return every_rank.get(self.sharding_type, every_local_rank.get(self.sharding_type, 1) * self.column_parts)

    def row_parts(self, topology: Topology) -> int:
        """Return the number of parts into which the rows are split."""
        return 1 if self.sharding_type == "data_parallel" else self.num_shards(topology) // self.column_parts

    def is_allowed(self, table: PlannedTable, topology: Topology) -> bool:
        """Return whether a table can be sharded in this way: the job allows it, the ranks exist, no part is empty."""
        nodes = topology.world_size // topology.local_world_size
        # Columns are divided among ranks or hosts. On a single rank or host, a split table has one part.
        max_parts = {
            "column_wise": topology.world_size,
            "table_column_wise": topology.local_world_size,
            "grid_shard": nodes,
        }.get(self.sharding_type, 1)
        min_parts = min(2, max_parts)
        dim, parts = table.embedding_dim, self.column_parts
        min_columns = min(MIN_SHARD_COLUMNS, dim // 2) if table.allow_narrow_shards else MIN_SHARD_COLUMNS
        row_parts = self.row_parts(topology)
        return (
            self.sharding_type in table.sharding_types
            and (self.sharding_type == "data_parallel" or self.compute_kernel in table.compute_kernels)
            and (table.num_ranks is None or self.num_shards(topology) == table.num_ranks)
            and min_parts <= parts <= max_parts
            and (parts == 1 or (dim % (4 * parts) == 0 and dim // parts >= min_columns))
            and fills_all_parts(table.num_embeddings, row_parts)
            and (table.rows_per_block == 1 or table.num_embeddings % (table.rows_per_block * row_parts) == 0)
        )


def fills_all_parts(rows: int, parts: int) -> bool:
    """Return whether TorchRec's split of a table leaves no part empty.

    TorchRec puts ceil(rows / parts) rows into each part until no rows are left, so the last parts may be empty.
    FBGEMM's rowwise_adagrad on cpu confuses an empty table with the table next to it.
    """
    return -(-rows // parts) * (parts - 1) < rows


def sharding_choices(kernels: Sequence[str]) -> list[ShardingChoice]:
    """Return all ways to shard a table with the given kernels."""
    choices = [ShardingChoice("data_parallel", "dense")]
    for kernel in kernels:
        for cached in CACHE_LOAD_FACTORS if kernel == "fused_uvm_caching" else (None,):
            whole_rows = ("table_wise", "row_wise", "table_row_wise")
            choices += [ShardingChoice(kind, kernel, cache_load_factor=cached) for kind in whole_rows]
            splits = ("column_wise", "table_column_wise", "grid_shard")
            choices += [ShardingChoice(kind, kernel, parts, cached) for kind in splits for parts in COLUMN_PARTS]
    return choices
