"""Check that a plan shards every table completely and exactly once."""

from __future__ import annotations

from collections.abc import Mapping

from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from asymdiffrec.embeddings.torchrec_compat import EnumerableShardingSpec, check_shards_cover


class InvalidPlanError(ValueError):
    """A plan that does not shard every table completely and exactly once."""


def validate_plan(plan: ShardingPlan, tables: Mapping[str, EmbeddingBagConfig], world_size: int) -> None:
    """Raise InvalidPlanError if a plan omits a table, has a table twice, or omits rows, columns or ranks of a table."""
    names = [name for module in plan.plan.values() for name in module]
    for name in tables:
        if names.count(name) != 1:
            raise InvalidPlanError(f"the plan has {names.count(name)} shardings of the table {name}; it must have one")
    if unknown := sorted(set(names) - set(tables)):
        raise InvalidPlanError(f"the plan shards the table {unknown[0]}, but the model has no such table")
    for module in plan.plan.values():
        for name, sharding in module.items():
            ranks = sharding.ranks or []
            if not ranks or not all(0 <= rank < world_size for rank in ranks):
                raise InvalidPlanError(
                    f"the plan puts the table {name} on ranks {ranks}; allowed are 0 to {world_size - 1}"
                )
            if sharding.sharding_type == "data_parallel":
                if sorted(ranks) != list(range(world_size)):
                    raise InvalidPlanError(
                        f"the plan replicates the table {name} on ranks {ranks}; it must be on all {world_size} ranks"
                    )
                continue
            spec = sharding.sharding_spec
            if not isinstance(spec, EnumerableShardingSpec):
                raise InvalidPlanError(f"the plan does not say which rank holds which part of the table {name}")
            try:
                check_shards_cover(spec.shards, [tables[name].num_embeddings, tables[name].embedding_dim])
            except ValueError as error:
                raise InvalidPlanError(f"the plan's shards do not cover the table {name} exactly: {error}") from error
