"""Whether a plan shards every table once and whole."""

from __future__ import annotations

from collections.abc import Mapping

from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torch.distributed._shard.sharding_spec._internals import check_tensor, validate_non_overlapping_shards_metadata
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig


class InvalidPlanError(ValueError):
    """A plan that does not shard every table exactly once and whole."""


def check_plan(plan: ShardingPlan, tables: Mapping[str, EmbeddingBagConfig], world_size: int) -> None:
    """Check that a plan shards every table once and whole.

    Raises InvalidPlanError where it drops a table, counts one twice, or leaves rows, columns or ranks out of it.
    """
    names = [name for module in plan.plan.values() for name in module]
    for name in tables:
        if names.count(name) != 1:
            raise InvalidPlanError(f"the plan has {names.count(name)} shardings of the table {name}; it needs one")
    if strange := sorted(set(names) - set(tables)):
        raise InvalidPlanError(f"the plan shards a table {strange[0]}, which the model lacks")
    for module in plan.plan.values():
        for name, sharding in module.items():
            ranks = sharding.ranks or []
            if not ranks or not all(0 <= rank < world_size for rank in ranks):
                raise InvalidPlanError(f"the plan puts the table {name} on ranks {ranks}; there are {world_size}")
            if sharding.sharding_type == "data_parallel":
                if sorted(ranks) != list(range(world_size)):
                    raise InvalidPlanError(f"the plan replicates the table {name} on ranks {ranks} alone")
                continue
            spec = sharding.sharding_spec
            if not isinstance(spec, EnumerableShardingSpec):
                raise InvalidPlanError(f"the plan does not say which part of the table {name} is where")
            try:
                validate_non_overlapping_shards_metadata(spec.shards)
                check_tensor(spec.shards, [tables[name].num_embeddings, tables[name].embedding_dim])
            except ValueError as error:
                raise InvalidPlanError(f"the plan's shards do not make up the table {name}: {error}") from error
