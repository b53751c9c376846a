"""TorchRec's planner, for comparison in benchmarks. It makes greedy proposals over all its options."""

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
from asymdiffrec.embeddings.torchrec_compat import plan_with_options

TIMEOUT_SECONDS = 60
"""Time limit for the proposals of TorchRec's planner."""


def plan_by_torchrec(
    model: nn.Module,
    tables: Sequence[PlannedTable],
    topology: Topology,
    batch_size: int,
    sharder: ModuleSharder[Any],
) -> tuple[ShardingPlan, list[ShardingOption]]:
    """Return a plan for the tables of `model` by TorchRec's planner, with the arguments of `plan_by_search`.

    The constraints have the pooling factors and the settings of the job. The planner uses our memory estimate, so that
    every plan that it accepts fits into memory. Raises TooLargeError if it finds no plan.
    """
    constraints = {
        table.name: ParameterConstraints(
            pooling_factors=list(table.pooling_factors),
            sharding_types=list(table.sharding_types) if _is_constrained(table) else None,
            compute_kernels=["dense", *table.compute_kernels],
            is_weighted=table.is_weighted,
            cache_params=CacheParams(stats=table.cache_statistics) if table.cache_statistics else None,
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
        timeout_seconds=TIMEOUT_SECONDS,
    )
    try:
        return plan_with_options(planner, model, [sharder, ManagedSharder(sharder)])
    except PlannerError as error:
        raise TooLargeError([]) from error


def _is_constrained(table: PlannedTable) -> bool:
    return bool(table.num_ranks) or table.allow_narrow_shards or len(table.sharding_types) == 1
