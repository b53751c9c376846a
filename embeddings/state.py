"""The weights of tables and the state of their optimizer, under names that depend on no rank, plan or kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import ShardMetadata
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from asymdiffrec.embeddings.keys import table_of
from asymdiffrec.embeddings.managed.lookup import managed_state
from asymdiffrec.embeddings.optimizers import STATES, OptimizerConfig


def table_weights(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """The live weights of every table, by name: a ShardedTensor, or a plain tensor where each rank holds the whole."""
    weights = {}
    for module in model.module.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            for key, weight in module.state_dict().items():
                sharded = isinstance(weight, ShardedTensor)
                weights[table_of(key)] = weight if sharded else weight.detach().as_subclass(torch.Tensor)
    return weights


def look_up_state(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """What of `table_state` is needed to look up: `TABLE.weight` of every table, and `TABLE.ids` of managed ones."""
    weights = table_weights(model)
    ids = {name: tensor for name, tensor in managed_state(model, weights).items() if name.endswith(".ids")}
    return {f"{table}.weight": weight for table, weight in weights.items()} | ids


def local_parts(weight: torch.Tensor) -> Iterator[tuple[torch.Tensor, int, int]]:
    """What this rank holds of a table: blocks, each with its first row and column."""
    if not isinstance(weight, ShardedTensor):
        yield weight, 0, 0
        return
    for shard in weight.local_shards():
        row, column = shard.metadata.shard_offsets
        yield shard.tensor, row, column


def table_state(
    model: DistributedModelParallel, optimizer: KeyedOptimizer, config: OptimizerConfig
) -> dict[str, torch.Tensor]:
    """`TABLE.weight` and `TABLE.STATE` (`sum`; `exp_avg` and `exp_avg_sq`) of every table, the same keys on every rank;
    of managed tables their ids too, see `managed_state`.

    `optimizer` is that of `tables_optimizer`. The tensors are the live ones, sharded or plain: saved from and loaded
    into by `torch.distributed.checkpoint`, whatever plan and number of ranks wrote them. The one exception is
    rowwise_adagrad with split columns: the `sum` of each split is stacked, and another plan finds another shape.
    """
    held: dict[tuple[str, str], torch.Tensor] = {}
    for key, tensors in optimizer.state_dict()["state"].items():
        table = table_of(key)
        held |= {(table, name): tensor for name, tensor in zip(STATES[config.name], tensors.values(), strict=True)}
    state, weights = {}, table_weights(model)
    for table, weight in weights.items():
        state[f"{table}.weight"] = weight
        for name in STATES[config.name]:
            tensor = held.get((table, name))
            state[f"{table}.{name}"] = _held_elsewhere(weight, config) if tensor is None else tensor
    return state | managed_state(model, weights)


def _held_elsewhere(weight: torch.Tensor, config: OptimizerConfig) -> ShardedTensor:
    """The optimizer's state on a rank that has no part of the table; FBGEMM knows nothing of the table there."""
    assert isinstance(weight, ShardedTensor)
    shards, size = weight.metadata().shards_metadata, weight.metadata().size
    if config.name == "rowwise_adagrad":
        rows, first = [], 0
        for shard in sorted(shards, key=lambda shard: shard.shard_offsets[::-1]):
            rows.append(ShardMetadata([first], [shard.shard_sizes[0]], shard.placement))
            first += shard.shard_sizes[0]
        shards, size = rows, torch.Size([first])
    metadata = ShardedTensorMetadata(shards, size, TensorProperties(dtype=torch.float32))
    return ShardedTensor._init_from_local_shards_and_global_metadata([], metadata, weight._process_group)
