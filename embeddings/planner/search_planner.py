"""Our planner: `search` with the costs of TorchRec's estimators. TorchRec's planner builds and checks the plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    Enumerator,
    ParameterConstraints,
    Partitioner,
    Proposer,
    ShardingOption,
    Topology,
)
from torchrec.distributed.planner.utils import build_sharder_data
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan

from asymdiffrec.embeddings.managed.lookup import ManagedSharder
from asymdiffrec.embeddings.planner.costs import table_costs
from asymdiffrec.embeddings.planner.estimators import estimators
from asymdiffrec.embeddings.planner.packing import Capacity
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.search import search
from asymdiffrec.embeddings.planner.sharding_choices import ShardingChoice, sharding_choices
from asymdiffrec.embeddings.torchrec_compat import plan_with_options


def plan_by_search(
    model: nn.Module,
    tables: Sequence[PlannedTable],
    topology: Topology,
    batch_size: int,
    sharder: ModuleSharder[Any],
) -> tuple[ShardingPlan, list[ShardingOption]]:
    """Return a plan for the tables of `model`, and its options with TorchRec's estimates of each shard.

    `batch_size` is the number of samples of one rank. Raises TooLargeError if the search finds no plan that fits into
    the memory of the topology's devices.
    """
    kernels = list(dict.fromkeys(kernel for table in tables for kernel in table.compute_kernels))
    choices = sharding_choices(kernels)
    storage = topology.devices[0].storage
    memory, host_memory = (storage.ddr, 0) if topology.compute_device == "cpu" else (storage.hbm, storage.ddr)
    costs = table_costs(tables, choices, topology, batch_size, build_sharder_data(sharder))
    placement = search(costs, Capacity(topology.world_size, topology.local_world_size, memory, host_memory))
    chosen = [choices[index] for index in placement.choice]
    ranks = [ranks_of_shards.tolist() for ranks_of_shards in placement.ranks]
    return build_plan(model, tables, topology, batch_size, sharder, chosen, ranks)


def build_plan(
    model: nn.Module,
    tables: Sequence[PlannedTable],
    topology: Topology,
    batch_size: int,
    sharder: ModuleSharder[Any],
    choices: Sequence[ShardingChoice],
    ranks: Sequence[list[int]],
) -> tuple[ShardingPlan, list[ShardingOption]]:
    """Return TorchRec's plan with the given sharding choice of each table, and the given ranks of its shards.

    TorchRec's planner builds the plan. The constraints leave it nothing to choose.
    """
    constraints = {table.name: _constraints(table, choice) for table, choice in zip(tables, choices, strict=True)}
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=EmbeddingEnumerator(topology, batch_size, constraints, estimators(topology, constraints)),
        constraints=constraints,
        proposer=_OneProposal(),
        partitioner=_GivenRanks({table.name: of_table for table, of_table in zip(tables, ranks, strict=True)}),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        stats=[],
    )
    return plan_with_options(planner, model, [sharder, ManagedSharder(sharder)])


def _constraints(table: PlannedTable, choice: ShardingChoice) -> ParameterConstraints:
    """Return constraints that leave TorchRec's planner one option for the table."""
    statistics = table.cache_statistics
    cache = CacheParams(
        load_factor=choice.cache_load_factor, stats=statistics, prefetch_pipeline=statistics is not None
    )
    return ParameterConstraints(
        sharding_types=[choice.sharding_type],
        compute_kernels=[choice.compute_kernel],
        min_partition=table.embedding_dim // choice.column_parts,
        pooling_factors=list(table.pooling_factors),
        is_weighted=table.is_weighted,
        cache_params=cache if choice.cache_load_factor else None,
    )


class _OneProposal(Proposer):
    """A proposer of the whole search space, once. The search space has one option for each table."""

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        self._proposal: list[ShardingOption] | None = search_space

    def propose(self) -> list[ShardingOption] | None:
        proposal, self._proposal = self._proposal, None
        return proposal

    def feedback(self, *_: Any, **__: Any) -> None:
        pass


class _GivenRanks(Partitioner):
    """A partitioner that puts the shards of each table on given ranks."""

    def __init__(self, ranks: dict[str, list[int]]) -> None:
        self._ranks = ranks

    def partition(self, proposal: list[ShardingOption], storage_constraint: Topology) -> list[ShardingOption]:
        for option in proposal:
            for shard, rank in zip(option.shards, self._ranks[option.name], strict=True):
                shard.rank = rank
        return proposal
