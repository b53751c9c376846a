"""Verification of a plan without its cluster: TorchRec shards meta tensors on some ranks, with the `fake` backend."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore  # the only store of the `fake` backend
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from asymdiffrec.embeddings.planner.plan_validation import InvalidPlanError
from asymdiffrec.embeddings.torchrec_compat import (
    EnumerableShardingSpec,
    ShardMetadata,
    fused_table_elements,
    rank_device,
)
from asymdiffrec.torch_compat import default_process_group


def verify_plan(
    model: nn.Module,
    plan: ShardingPlan,
    sharder: EmbeddingBagCollectionSharder,
    world_size: int,
    local_world_size: int,
    ranks: Collection[int],
) -> None:
    """Shard the tables of `model` on each of `ranks` and compare the shards of each rank with the plan.

    Two kinds of tables are left out: replicated tables, which DDP would allocate, and tables in host memory, which need
    a GPU. No process group may exist. Raises InvalidPlanError if a rank holds another number of weights of a table than
    planned.
    """
    planned = _on_cpu(plan).plan
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection):
            name = path.removesuffix("._embedding_module")  # the suffix of a managed look-up
            _verify_module(module, planned[name], sharder, world_size, local_world_size, ranks)


def _verify_module(
    tables: EmbeddingBagCollection,
    plan: Any,
    sharder: EmbeddingBagCollectionSharder,
    world_size: int,
    local_world_size: int,
    ranks: Collection[int],
) -> None:
    fused = {name: parameter for name, parameter in plan.items() if parameter.compute_kernel == "fused"}
    if not fused:
        return
    configs = [config for config in tables.embedding_bag_configs() if config.name in fused]
    unsharded = EmbeddingBagCollection(configs, is_weighted=tables.is_weighted(), device=torch.device("meta"))
    for rank in ranks:
        with _fake_process_group(rank, world_size, local_world_size) as env:
            sharded = sharder.shard(copy.deepcopy(unsharded), fused, env, torch.device("meta"))
            elements = fused_table_elements(sharded)
        for name, parameter in fused.items():
            spec = parameter.sharding_spec
            if isinstance(spec, EnumerableShardingSpec):
                sizes = [shard.shard_sizes for shard in spec.shards if _rank(shard) == rank]
                planned = sum(rows * columns for rows, columns in sizes)
                if elements[name] != planned:
                    raise InvalidPlanError(
                        f"rank {rank} holds {elements[name]} weights of the table {name}; the plan says {planned}"
                    )


def _rank(shard: ShardMetadata) -> int | None:
    return shard.placement.rank() if shard.placement else None


def _on_cpu(plan: ShardingPlan) -> ShardingPlan:
    """Return the plan with its shards on the CPU of the same ranks, because this host may have no GPU."""
    plan = copy.deepcopy(plan)
    for module in plan.plan.values():
        for parameter in module.values():
            if isinstance(parameter.sharding_spec, EnumerableShardingSpec):
                for shard in parameter.sharding_spec.shards:
                    shard.placement = rank_device(_rank(shard), "cpu")
    return plan


@contextmanager
def _fake_process_group(rank: int, world_size: int, local_world_size: int) -> Iterator[ShardingEnv]:
    """Initialise a process group in which this process is `rank` and the other ranks do not exist."""
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank % local_world_size,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": local_world_size,
    }
    with (
        patch.dict(os.environ, {name: str(value) for name, value in environment.items()}),
        default_process_group("fake", rank=rank, world_size=world_size, store=FakeStore()),
    ):
        yield ShardingEnv.from_process_group(dist.group.WORLD)
