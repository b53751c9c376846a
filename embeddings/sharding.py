"""Shard a model's tables by a plan, and fill them with initial weights that do not depend on the plan."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv, ShardingPlan

from asymdiffrec.base import InputError, OtherRankError
from asymdiffrec.embeddings import initial_weights as initial
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.lookup import ManagedSharder, reset_rows
from asymdiffrec.embeddings.sharder import TableSharder
from asymdiffrec.embeddings.state import local_blocks, table_weights

T = TypeVar("T")


def shard(
    model: nn.Module, config: TablesConfig, plan: ShardingPlan, device: torch.device, seed: int
) -> DistributedModelParallel:
    """Shard the `FieldTables` in `model` over all ranks and replicate its dense part.

    The gradients of tables and of dense parameters are averaged over the ranks, so the loss must be the mean over a
    rank's samples. The dense part starts from the weights of rank 0, the tables start from `initial_weights.fill`. The
    state of torch's random number generator does not change. A collective call: every rank passes the same plan.
    """
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    with warnings.catch_warnings(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        # TorchRec itself passes the deprecated argument.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        sharder = TableSharder(config, device.type)
        sharded = DistributedModelParallel(model, env, device, plan, [sharder, ManagedSharder(sharder)])
    weights = table_weights(sharded)
    for table, weight in weights.items():
        for block, row, column in local_blocks(weight):
            initial.fill(block, config.init_std, seed, table, row, column)
    reset_rows(sharded, weights, config.init_std, seed)
    return sharded


def run_on_rank_0(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 and return its result on every rank. The result must be picklable. A collective call.

    An exception of `make` is raised on every rank, so that no rank waits forever. Rank 0 raises the exception itself.
    The other ranks raise an error with the same message: InputError if the exception is an InputError, else
    OtherRankError.
    """
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            outcome[0] = (make(), None)
        except Exception as error:
            failure = error
            kind = InputError if isinstance(error, InputError) else OtherRankError
            outcome[0] = (None, kind(str(error)))
    dist.broadcast_object_list(outcome)
    result, reported = outcome[0]
    if failure is not None:
        raise failure
    if reported is not None:
        raise reported
    return cast(T, result)
