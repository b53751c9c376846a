"""What a checkpoint holds, in one layout: no key or shape depends on rank, plan or kernel (but see `table_state`), so
that any number of workers loads one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
from torch.distributed._shard.sharding_spec import ShardMetadata

from asymdiffrec.embeddings.state import lookup_state, table_state
from asymdiffrec.trainer.build import TrainState


@dataclass(frozen=True)
class Standing:
    """Where training stands: beside the trainee's state all that it takes to go on."""

    step: int = 0
    best_step: int = 0
    best_value: float | None = None
    waited: int = 0
    """validations since the best one"""
    means: Mapping[str, float] = field(default_factory=dict)
    """of the losses since the last line of the log, over all workers and `counted` steps"""
    counted: int = 0
    ledger: int = 0
    """of the rows learned from in these steps, as `order.ledgers` has it"""

    def summary(self) -> dict[str, Any]:
        """What of it tells how a training ended."""
        return {key: value for key, value in asdict(self).items() if key not in ("means", "counted", "ledger")}

    def validated(self, value: float, higher_is_better: bool) -> Standing:
        better = self.best_value is None or (value > self.best_value if higher_is_better else value < self.best_value)
        if better:
            return replace(self, best_step=self.step, best_value=value, waited=0)
        return replace(self, waited=self.waited + 1)


def weights(train_state: TrainState) -> dict[str, Any]:
    """The live weights under their canonical names, and what else a look-up needs."""
    dense = {name: parameter.detach() for name, parameter in train_state.dense.items()}
    return {"tables": lookup_state(train_state.model), "dense": dense}


def state(train_state: TrainState) -> dict[str, Any]:
    """The live weights and optimizer states under their canonical names."""
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
    """Copies of a trainee's state in host memory, which the training that goes on does not change.

    The memory is taken once and used again: fresh memory costs more than the copy.
    """

    def __init__(self, train_state: TrainState) -> None:
        self._trainee = train_state
        self._state: dict[str, dict[str, Any]] | None = None

    def take(self) -> dict[str, dict[str, Any]]:
        """The state as it is now; what was taken before is overwritten."""
        live = state(self._trainee)
        if self._state is None:
            self._state = {part: {name: _like(one) for name, one in named.items()} for part, named in live.items()}
        for part, named in live.items():
            for name, tensor in named.items():
                _copy(tensor, self._state[part][name])
        if self._trainee.device.type == "cuda":
            torch.cuda.synchronize(self._trainee.device)
        return self._state


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same shape and sharding in host memory, page-locked for what comes from a GPU."""
    if not isinstance(tensor, ShardedTensor):
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    metadata = tensor.metadata()
    on_host = [
        ShardMetadata(shard.shard_offsets, shard.shard_sizes, f"rank:{_rank(shard)}/cpu")
        for shard in metadata.shards_metadata
    ]
    held = {tuple(shard.metadata.shard_offsets): shard.tensor for shard in tensor.local_shards()}
    own = [shard for shard in on_host if _rank(shard) == dist.get_rank()]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [Shard(_like(held[tuple(shard.shard_offsets)]), shard) for shard in own],
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
