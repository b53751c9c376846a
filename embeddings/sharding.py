"""A model with its tables sharded by a plan, and filled with weights that no plan changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from asymdiffrec.base import InputError
from asymdiffrec.embeddings import initial_weights as initial
from asymdiffrec.embeddings.managed.lookup import ManagedSharder, reset_rows
from asymdiffrec.embeddings.sharder import TableSharder
from asymdiffrec.embeddings.state import local_parts, table_weights
from asymdiffrec.embeddings.tables import TablesConfig

T = TypeVar("T")


def shard(
    model: nn.Module, config: TablesConfig, plan: ShardingPlan, device: torch.device, seed: int
) -> DistributedModelParallel:
    """`model`, which holds a `FieldTables`, on all ranks; the dense part is replicated.

    Gradients are averaged over the ranks, for tables too, so the loss is to be the mean over a rank's samples. The
    dense part starts from rank 0's weights, tables from `initial.fill`; torch's random numbers go on as if none had
    been drawn. A collective call: every rank makes it with the same plan.
    """
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    with warnings.catch_warnings(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # TorchRec passes it on
        sharder = TableSharder(config, device.type)
        sharded = DistributedModelParallel(model, env, device, plan, [sharder, ManagedSharder(sharder)])
    weights = table_weights(sharded)
    for table, weight in weights.items():
        for block, row, column in local_parts(weight):
            initial.fill(block, config.init_std, seed, table, row, column)
    reset_rows(sharded, weights, config.init_std, seed)
    return sharded


def agreed(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank.

    An InputError of `make` is raised on every rank too, so that none waits forever.
    """
    outcome: list[T | InputError | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = make()
        except InputError as error:
            outcome[0] = error
    dist.broadcast_object_list(outcome)
    (found,) = outcome
    if isinstance(found, InputError):
        raise found
    return cast(T, found)
