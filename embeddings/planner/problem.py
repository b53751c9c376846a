"""The planning problem: everything that a sharding plan depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn
from torchrec.distributed.planner.types import Topology

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import GB, Cluster
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable, planned_tables
from asymdiffrec.embeddings.planner.sharding_choices import sharding_choices
from asymdiffrec.embeddings.sharder import TableSharder

RESERVED_MEMORY_SHARE = 0.15
"""Share of each rank's memory that a plan leaves free for batches in flight, libraries, and fragmentation of the
allocator."""

DENSE_COPIES = 4
"""Memory of a dense parameter in multiples of its size, without the optimizer's moments: the parameter, its gradient,
and the buckets of the all-reduce."""


@dataclass(frozen=True)
class Problem:
    """Everything that a plan depends on."""

    model: nn.Module
    """Contains an unsharded `FieldTables`"""
    schema: Schema
    config: TablesConfig
    cluster: Cluster
    batch_size: int
    """Samples of all ranks in a step"""
    dense: DenseWork

    @property
    def samples_per_rank(self) -> int:
        """Samples of one rank in a step."""
        return max(1, self.batch_size // self.cluster.world_size)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense part on every rank: parameters, gradients, buckets, optimizer state and activations."""
        return 4 * (DENSE_COPIES + self.dense.moments) * self.dense.parameters + self.dense.activations

    @property
    def reserved_bytes(self) -> int:
        """Reserved bytes of each rank, see RESERVED_MEMORY_SHARE."""
        return round(RESERVED_MEMORY_SHARE * self.cluster.device.memory * GB)

    @cached_property
    def topology(self) -> Topology:
        """TorchRec's topology, with the memory that is left for tables."""
        return self.cluster.topology(self.dense_bytes + self.reserved_bytes)

    @cached_property
    def sharder(self) -> TableSharder:
        """TorchRec's sharder with the sharding types and kernels that the job allows."""
        return TableSharder(self.config, self.cluster.device.kind)

    @cached_property
    def tables(self) -> list[PlannedTable]:
        """The tables to plan. Raises InputError if a sharding that the job sets would leave ranks without rows."""
        tables = planned_tables(
            self.model, self.schema, self.config, self.cluster.device.kind, self.batch_size, self.sharding_types
        )
        for table in tables:
            self._check_is_possible(table)
        return tables

    @property
    def sharding_types(self) -> list[str]:
        """The sharding types to try; types that are useless on this number of ranks and hosts are left out."""
        if self.cluster.world_size == 1:
            return ["table_wise"]
        useless = {"table_column_wise"}
        if self.cluster.nodes == 1:
            useless |= {"grid_shard", "table_row_wise"}
        return [kind for kind in self.sharder.sharding_types(self.cluster.device.kind) if kind not in useless]

    def _check_is_possible(self, table: PlannedTable) -> None:
        if self._is_possible(table):
            return
        world_size, rows = self.cluster.world_size, table.num_embeddings
        if table.rows_per_block > 1:
            multiple = table.rows_per_block * world_size
            raise InputError(
                f"tables.per_table.{table.name}: num_embeddings is {rows}; with collision: managed on {world_size} "
                f"ranks it must be a multiple of {multiple}, such as {-(-rows // multiple) * multiple}"
            )
        required = " or ".join(table.sharding_types) + (f" on {table.num_ranks} ranks" if table.num_ranks else "")
        possible = [kind for kind in self.sharding_types if self._is_possible(replace(table, sharding_types=[kind]))]
        raise InputError(
            f"tables.per_table.{table.name}: {required} cannot divide the table (num_embeddings {rows}, embedding_dim "
            f"{table.embedding_dim}) so that each of {world_size} ranks has a part; use "
            f"{', '.join(possible) or 'another number of ranks'}"
        )

    def _is_possible(self, table: PlannedTable) -> bool:
        return any(choice.is_allowed(table, self.topology) for choice in sharding_choices(table.compute_kernels))
