"""All uses of internals of TorchRec, and of the parts of torch.distributed that TorchRec is built on.

Each function says why the public API is not enough. Check every function when TorchRec, FBGEMM or torch is upgraded.
This module also exports the classes of sharded tensors: TorchRec's public API returns them, but in torch they are
private.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torch.distributed._shard.sharding_spec._internals import check_tensor, validate_non_overlapping_shards_metadata
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.composable.table_batched_embedding_slice import TableBatchedEmbeddingSlice
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.shard_estimators import _get_optimizer_multipler
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.optim.optimizers import in_backward_optimizer_filter

__all__ = [
    "EnumerableShardingSpec",
    "Shard",
    "ShardMetadata",
    "ShardedTensor",
    "ShardedTensorMetadata",
    "check_shards_cover",
    "fuse_optimizer",
    "fused_table_elements",
    "is_replicated_table",
    "optimizer_state_elements",
    "parameters_updated_by_step",
    "plan_with_options",
    "rank_device",
    "sharded_tensor",
    "table_name",
]


def table_name(key: str) -> str:
    """Return the table of a parameter key such as `PATH.embedding_bags.TABLE.weight`.

    TorchRec has no function for this. A table name contains no dot, see `embedding_bag_configs`.
    """
    return key.split(".")[-2]


def fuse_optimizer(
    optimizer: type[torch.optim.Optimizer], weights: Iterable[nn.Parameter], settings: Mapping[str, Any]
) -> None:
    """Mark table weights with the optimizer that updates them in the backward pass.

    TorchRec's documentation uses this private function of torch; its sharders and its planner read the mark.
    """
    _apply_optimizer_in_backward(optimizer, weights, dict(settings))


def optimizer_state_elements(weight: torch.Tensor, elements: int) -> float:
    """Return the number of state values that the fused optimizer of a marked table keeps for `elements` weights.

    TorchRec's storage estimator uses the same private factor, but returns only bytes in the type of the weights.
    """
    (optimizer,) = getattr(weight, "_optimizer_classes", [None])
    return float(elements * _get_optimizer_multipler(optimizer, weight.shape))


def is_replicated_table(parameter: nn.Parameter) -> bool:
    """Return whether a parameter of a sharded model is a data-parallel table. Only its class shows this in TorchRec."""
    return isinstance(parameter, TableBatchedEmbeddingSlice)


def parameters_updated_by_step(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that no fused optimizer updates, by name: dense parameters and data-parallel tables."""
    return dict(in_backward_optimizer_filter(model.named_parameters()))


def plan_with_options(
    planner: EmbeddingShardingPlanner, model: nn.Module, sharders: Sequence[ModuleSharder[Any]]
) -> tuple[ShardingPlan, list[ShardingOption]]:
    """Return the planner's plan and the chosen options, with the estimates of each shard.

    `EmbeddingShardingPlanner.plan` returns the plan only; the options stay in a private attribute.
    """
    plan = planner.plan(model, list(sharders))
    assert planner._best_plan is not None
    return plan, planner._best_plan


def sharded_tensor(
    local: Sequence[Shard],
    shards: Sequence[ShardMetadata],
    size: torch.Size,
    dtype: torch.dtype,
    like: ShardedTensor,
) -> ShardedTensor:
    """Return a ShardedTensor of this rank's `local` shards in the process group of `like`, without communication.

    The public constructors gather the metadata from all ranks. This is not necessary, because every rank knows the
    metadata of all shards.
    """
    metadata = ShardedTensorMetadata(list(shards), size, TensorProperties(dtype=dtype))
    return ShardedTensor._init_from_local_shards_and_global_metadata(list(local), metadata, like._process_group)


def check_shards_cover(shards: Sequence[ShardMetadata], size: Sequence[int]) -> None:
    """Raise ValueError if shards overlap or do not cover a tensor of `size`. The checks are private in torch."""
    validate_non_overlapping_shards_metadata(list(shards))
    check_tensor(list(shards), list(size))


def rank_device(rank: int | None, device: str) -> Any:
    """Return the placement of a shard on `device` of a rank. torch has no public name for the class."""
    return torch.distributed._remote_device(f"rank:{rank}/{device}")


def fused_table_elements(sharded: Any) -> Counter[str]:
    """Return the number of weights of each table that this rank holds in FBGEMM's fused kernels.

    `sharded` is a ShardedEmbeddingBagCollection. Its state_dict does not work on meta tensors, which have no storage.
    """
    elements: Counter[str] = Counter()
    lookups = [lookup for lookup in sharded._lookups if isinstance(lookup, nn.Module)]
    for module in (module for lookup in lookups for module in lookup.modules()):
        if isinstance(module, BatchedFusedEmbeddingBag):
            for table in module._config.embedding_tables:
                elements[table.name] += table.local_rows * table.local_cols
    return elements
