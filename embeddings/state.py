"""Weights of tables and state of their optimizer, under names that do not depend on ranks, plan or kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from asymdiffrec.embeddings.managed.lookup import managed_state
from asymdiffrec.embeddings.optimizers import STATES, OptimizerConfig
from asymdiffrec.embeddings.torchrec_compat import ShardedTensor, ShardMetadata, sharded_tensor, table_name


def table_weights(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """Return the live weights of every table by name: a ShardedTensor, or a plain tensor if the table is replicated."""
    weights = {}
    for module in model.module.modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            for key, weight in module.state_dict().items():
                sharded = isinstance(weight, ShardedTensor)
                weights[table_name(key)] = weight if sharded else weight.detach().as_subclass(torch.Tensor)
    return weights


def lookup_state(model: DistributedModelParallel) -> dict[str, torch.Tensor]:
    """Return the part of `table_state` that a look-up needs: `TABLE.weight`, and `TABLE.ids` of managed tables."""
    weights = table_weights(model)
    ids = {name: tensor for name, tensor in managed_state(model, weights).items() if name.endswith(".ids")}
    return {f"{table}.weight": weight for table, weight in weights.items()} | ids


def local_blocks(weight: torch.Tensor) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Yield (block, first row, first column) for each block of a table that this rank holds."""
    if not isinstance(weight, ShardedTensor):
        yield weight, 0, 0
        return
    for shard in weight.local_shards():
        row, column = shard.metadata.shard_offsets
        yield shard.tensor, row, column


def table_state(
    model: DistributedModelParallel, optimizer: KeyedOptimizer, config: OptimizerConfig
) -> dict[str, torch.Tensor]:
    """Return the live tensors of all tables for checkpoints. The keys are the same on every rank.

    Every table has `TABLE.weight` and one `TABLE.STATE` for each name of STATES. Managed tables also have the keys of
    `managed_state`. `optimizer` is the result of `tables_optimizer`. The tensors are sharded or plain.
    `torch.distributed.checkpoint` saves from them and loads into them; the checkpoint can be from another plan and
    another number of ranks.
    """
    states: dict[tuple[str, str], torch.Tensor] = {}
    for key, tensors in optimizer.state_dict()["state"].items():
        table = table_name(key)
        states |= {(table, name): tensor for name, tensor in zip(STATES[config.name], tensors.values(), strict=True)}
    state, weights = {}, table_weights(model)
    for table, weight in weights.items():
        state[f"{table}.weight"] = weight
        for name in STATES[config.name]:
            tensor = states.get((table, name))
            state[f"{table}.{name}"] = _state_without_local_shard(weight, config) if tensor is None else tensor
    return state | managed_state(model, weights)


def _state_without_local_shard(weight: torch.Tensor, config: OptimizerConfig) -> ShardedTensor:
    """Return the optimizer state of a table without a shard on this rank, which FBGEMM on this rank does not know."""
    assert isinstance(weight, ShardedTensor)
    shards, size = weight.metadata().shards_metadata, weight.metadata().size
    if config.name == "rowwise_adagrad":  # one value for each row; such tables are never split in columns
        by_row = sorted(shards, key=lambda part: part.shard_offsets)
        shards = [ShardMetadata(part.shard_offsets[:1], part.shard_sizes[:1], part.placement) for part in by_row]
        size = size[:1]
    return sharded_tensor([], shards, size, torch.float32, weight)
