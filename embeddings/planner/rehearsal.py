"""A plan tried without its cluster: ranks of it are sharded by TorchRec, on meta tensors and torch's `fake` backend."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from asymdiffrec.torch_compat import default_process_group


def rehearse(
    model: nn.Module,
    plan: ShardingPlan,
    sharder: EmbeddingBagCollectionSharder,
    world_size: int,
    local_world_size: int,
    ranks: Collection[int],
) -> None:
    """Shard the tables of `model` on each of `ranks`, and compare what it holds with the plan.

    Tables that are replicated, which DDP would fill with numbers, and those in host memory, which need a GPU, are left
    out. There must be no process group. Raises ValueError where a rank holds other parts of a table than the plan says.
    """
    planned = _on_cpu(plan).plan
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            place = path.removesuffix("._embedding_module")  # of a look-up with managed collision
            _rehearse(module, planned[place], sharder, world_size, local_world_size, ranks)


def _rehearse(
    tables: EmbeddingBagCollection,
    plan: Any,
    sharder: EmbeddingBagCollectionSharder,
    world_size: int,
    local_world_size: int,
    ranks: Collection[int],
) -> None:
    on_cpu = {name: parameter for name, parameter in plan.items() if parameter.compute_kernel == "fused"}
    if not on_cpu:
        return
    configs = [config for config in tables.embedding_bag_configs() if config.name in on_cpu]
    unsharded = EmbeddingBagCollection(configs, is_weighted=tables.is_weighted(), device=torch.device("meta"))
    for rank in ranks:
        with _cluster_of_one(rank, world_size, local_world_size) as env:
            sharded = sharder.shard(copy.deepcopy(unsharded), on_cpu, env, torch.device("meta"))
            held = _held(sharded)
        for name, parameter in on_cpu.items():
            spec = parameter.sharding_spec
            if isinstance(spec, EnumerableShardingSpec):
                sizes = [shard.shard_sizes for shard in spec.shards if _rank(shard) == rank]
                planned = sum(rows * columns for rows, columns in sizes)
                if held.get(name, 0) != planned:
                    found = held.get(name, 0)
                    raise ValueError(f"rank {rank} holds {found} weights of the table {name}; the plan says {planned}")


def _held(sharded: Any) -> Counter[str]:
    """How many weights of each table that is not replicated this rank has in FBGEMM's kernels."""
    held: Counter[str] = Counter()
    lookups = [lookup for lookup in sharded._lookups if isinstance(lookup, nn.Module)]
    for module in (module for lookup in lookups for module in lookup.modules()):
        if isinstance(module, BatchedFusedEmbeddingBag):
            for table in module._config.embedding_tables:
                held[table.name] += table.local_rows * table.local_cols
    return held


def _rank(shard: ShardMetadata) -> int | None:
    return shard.placement.rank() if shard.placement else None


def _on_cpu(plan: ShardingPlan) -> ShardingPlan:
    """The plan with its parts on CPUs of the same ranks: there may be no GPU here to name."""
    plan = copy.deepcopy(plan)
    for module in plan.plan.values():
        for parameter in module.values():
            if isinstance(parameter.sharding_spec, EnumerableShardingSpec):
                for shard in parameter.sharding_spec.shards:
                    shard.placement = torch.distributed._remote_device(f"rank:{_rank(shard)}/cpu")
    return plan


@contextmanager
def _cluster_of_one(rank: int, world_size: int, local_world_size: int) -> Iterator[ShardingEnv]:
    """A process group in which this process is `rank`, and nobody answers."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank % local_world_size,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": local_world_size,
    }
    with (
        patch.dict(os.environ, {name: str(value) for name, value in place.items()}),
        default_process_group("fake", rank=rank, world_size=world_size, store=FakeStore()),
    ):
        yield ShardingEnv.from_process_group(dist.group.WORLD)
