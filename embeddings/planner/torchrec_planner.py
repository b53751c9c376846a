"""TorchRec's own planner, for comparison: greedy proposals over all its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, ShardingOption, Topology
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan

from asymdiffrec.embeddings.managed.lookup import ManagedSharder
from asymdiffrec.embeddings.planner.estimators import StateStorageEstimator
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.search import TooLargeError

PATIENCE = 60
"""Seconds that it may make proposals for"""


def plan_by_torchrec(
    model: nn.Module,
    tables: Sequence[PlannedTable],
    topology: Topology,
    batch_size: int,
    sharder: ModuleSharder[Any],
) -> tuple[ShardingPlan, list[ShardingOption]]:
    """A plan for the tables of `model` by TorchRec's planner, told what a job fixes and nothing else but the pooling.

    It takes the estimate of memory that ours does, so that what it says fits does. Raises TooLargeError where it finds
    no plan.
    """
    constraints = {
        table.name: ParameterConstraints(
            pooling_factors=list(table.pooling),
            sharding_types=list(table.sharding) if table.parts or table.split or len(table.sharding) == 1 else None,
            compute_kernels=["dense", *table.kernels],
            is_weighted=table.weighted,
            cache_params=CacheParams(stats=table.cache) if table.cache else None,
        )
        for table in tables
    }
    estimators = [EmbeddingPerfEstimator(topology, constraints), StateStorageEstimator(topology, constraints)]
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=constraints,
        enumerator=EmbeddingEnumerator(topology, batch_size, constraints, estimators),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
        stats=[],
        timeout_seconds=PATIENCE,
    )
    try:
        plan = planner.plan(model, [sharder, ManagedSharder(sharder)])
    except PlannerError as error:
        raise TooLargeError([]) from error
    assert planner._best_plan is not None
    return plan, planner._best_plan
