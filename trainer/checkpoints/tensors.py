"""The tensors of a checkpoint, in a layout that does not depend on workers, sharding plan or kernels.

Keys and shapes do not depend on them (exception: `embeddings.state.table_state`), so any number of workers can load a
checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.embeddings.state import lookup_state, table_state
from asymdiffrec.embeddings.torchrec_compat import Shard, ShardedTensor, ShardedTensorMetadata, ShardMetadata
from asymdiffrec.trainer.train_state import TrainState


def weights(train_state: TrainState) -> dict[str, Any]:
    """Return the live weights by name, with everything else that a look-up needs (ids of managed tables)."""
    dense = {name: parameter.detach() for name, parameter in train_state.dense.items()}
    return {"tables": lookup_state(train_state.model), "dense": dense}


def state(train_state: TrainState) -> dict[str, Any]:
    """Return the live weights and optimizer states by name."""
    optimizer = {
        f"{name}.{key}": value
        for name, parameter in train_state.dense.items()
        for key, value in train_state.dense_optimizer.state[parameter].items()
    }
    if train_state.job.train.accumulate > 1:
        optimizer |= {f"{name}.grad": parameter.grad for name, parameter in train_state.dense.items()}
    tables = table_state(train_state.model, train_state.tables_optimizer, train_state.job.tables.optimizer)
    return weights(train_state) | {"tables": tables, "dense_optimizer": optimizer}


class Snapshot:
    """A copy of a train state in host memory, which later training steps do not change.

    The memory is allocated once and then reused, because allocating costs more time than copying. Written by hand
    because the stager of torch 2.13's `dcp.async_save` calls `data_ptr`, which a ShardedTensor does not have.
    """

    def __init__(self, train_state: TrainState) -> None:
        self._train_state = train_state
        self._copies: dict[str, dict[str, Any]] | None = None

    def take(self) -> dict[str, dict[str, Any]]:
        """Copy the current state and return the copy; it overwrites the copy of the previous call."""
        live = state(self._train_state)
        if self._copies is None:
            self._copies = {
                part: {name: _empty_on_host(tensor) for name, tensor in tensors.items()}
                for part, tensors in live.items()
            }
        for part, tensors in live.items():
            for name, tensor in tensors.items():
                _copy(tensor, self._copies[part][name])
        if self._train_state.device.type == "cuda":
            torch.cuda.synchronize(self._train_state.device)
        return self._copies


def _empty_on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor of the same shape and sharding in host memory, page-locked if the original is on a GPU."""
    if not isinstance(tensor, ShardedTensor):
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    metadata = tensor.metadata()
    on_host = [
        ShardMetadata(shard.shard_offsets, shard.shard_sizes, f"rank:{_rank(shard)}/cpu")
        for shard in metadata.shards_metadata
    ]
    local = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in tensor.local_shards()}
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [
            Shard(_empty_on_host(local[tuple(shard.shard_offsets)]), shard)
            for shard in on_host
            if _rank(shard) == dist.get_rank()
        ],
        ShardedTensorMetadata(on_host, metadata.size, metadata.tensor_properties),
        tensor._process_group,
    )


def _rank(shard: ShardMetadata) -> int:
    assert shard.placement is not None
    rank = shard.placement.rank()
    assert rank is not None
    return rank


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    if not isinstance(source, ShardedTensor):
        target.copy_(source, non_blocking=True)
        return
    assert isinstance(target, ShardedTensor)
    copies = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in target.local_shards()}
    for shard in source.local_shards():
        copies[tuple(shard.metadata.shard_offsets)].copy_(shard.tensor, non_blocking=True)
