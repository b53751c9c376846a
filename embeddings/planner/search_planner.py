"""Our planner: `search` over what TorchRec's estimators say, its outcome built and checked by TorchRec's planner."""

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
from asymdiffrec.embeddings.planner.costs import costs
from asymdiffrec.embeddings.planner.estimators import estimators
from asymdiffrec.embeddings.planner.packing import Capacity
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.search import search
from asymdiffrec.embeddings.planner.sharding_options import Way, ways


def plan_fast(
    model: nn.Module,
    tables: Sequence[PlannedTable],
    topology: Topology,
    batch_size: int,
    sharder: ModuleSharder[Any],
) -> tuple[ShardingPlan, list[ShardingOption]]:
    """A plan for the tables of `model`, and the same with TorchRec's estimates of each shard.

    Raises TooLargeError where nothing was found that fits into the memory of the topology's devices.
    """
    options = ways(_kernels(tables))
    storage = topology.devices[0].storage
    memory, host = (storage.ddr, 0) if topology.compute_device == "cpu" else (storage.hbm, storage.ddr)
    cost = costs(tables, options, topology, batch_size, build_sharder_data(sharder))
    placement = search(cost, Capacity(topology.world_size, topology.local_world_size, memory, host))
    chosen, ranks = [options[way] for way in placement.choice], [ranks.tolist() for ranks in placement.ranks]
    return pinned(model, tables, topology, batch_size, sharder, chosen, ranks)


def _kernels(tables: Sequence[PlannedTable]) -> list[str]:
    return list(dict.fromkeys(kernel for table in tables for kernel in table.kernels))


def pinned(
    model: nn.Module,
    tables: Sequence[PlannedTable],
    topology: Topology,
    batch_size: int,
    sharder: ModuleSharder[Any],
    chosen: Sequence[Way],
    ranks: Sequence[list[int]],
) -> tuple[ShardingPlan, list[ShardingOption]]:
    """TorchRec's plan of ways with the ranks of their shards, built by its planner, which is left nothing to choose."""
    constraints = {table.name: _only(table, way) for table, way in zip(tables, chosen, strict=True)}
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=EmbeddingEnumerator(topology, batch_size, constraints, estimators(topology, constraints)),
        constraints=constraints,
        proposer=_OneProposal(),
        partitioner=_Placed({table.name: where for table, where in zip(tables, ranks, strict=True)}),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        stats=[],
    )
    plan = planner.plan(model, [sharder, ManagedSharder(sharder)])
    assert planner._best_plan is not None
    return plan, planner._best_plan


def _only(table: PlannedTable, way: Way) -> ParameterConstraints:
    """Constraints that leave one option."""
    cache = CacheParams(load_factor=way.cached, stats=table.cache, prefetch_pipeline=table.cache is not None)
    return ParameterConstraints(
        sharding_types=[way.sharding],
        compute_kernels=[way.kernel],
        min_partition=table.dim // way.columns,
        pooling_factors=list(table.pooling),
        is_weighted=table.weighted,
        cache_params=cache if way.cached else None,
    )


class _OneProposal(Proposer):
    """Proposes the whole search space, which has one option for each table, once."""

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        self._proposal: list[ShardingOption] | None = search_space

    def propose(self) -> list[ShardingOption] | None:
        proposal, self._proposal = self._proposal, None
        return proposal

    def feedback(self, *_: Any, **__: Any) -> None:
        pass


class _Placed(Partitioner):
    """Puts the shards of each table on given ranks."""

    def __init__(self, ranks: dict[str, list[int]]) -> None:
        self._ranks = ranks

    def partition(self, proposal: list[ShardingOption], storage_constraint: Topology) -> list[ShardingOption]:
        for option in proposal:
            for shard, rank in zip(option.shards, self._ranks[option.name], strict=True):
                shard.rank = rank
        return proposal
