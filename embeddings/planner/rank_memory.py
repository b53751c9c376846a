"""What a plan gives each rank to hold, by TorchRec's estimates of its shards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.types import Shard, ShardingOption, Topology

from asymdiffrec.embeddings.planner.estimators import STATE_BYTES, bytes_beside, state_elements


@dataclass(frozen=True)
class TableMemory:
    """Bytes of tables on each rank, each [ranks]."""

    weights: np.ndarray
    state: np.ndarray
    """Of the optimizer, and the ids of managed rows"""
    activations: np.ndarray
    """Ids and embeddings in flight"""
    host: np.ndarray
    """In the memory of the machine; the others are on the device"""

    @property
    def device(self) -> np.ndarray:
        return self.weights + self.state + self.activations


def table_memory(options: Iterable[ShardingOption], topology: Topology) -> TableMemory:
    """The memory of a plan whose shards have their ranks and estimates, as `plan_fast` gives them."""
    memory = TableMemory(*np.zeros((4, topology.world_size)))
    for option in options:
        for shard in option.shards:
            weights, state, activations, host = shard_bytes(option, shard, topology.compute_device)
            memory.weights[shard.rank] += weights
            memory.state[shard.rank] += state
            memory.activations[shard.rank] += activations
            memory.host[shard.rank] += host
    return memory


def shard_bytes(option: ShardingOption, shard: Shard, device: str) -> tuple[float, float, float, float]:
    """Bytes of one shard, in the order of TableMemory."""
    storage = shard.storage
    assert storage is not None
    elements = math.prod(shard.size)
    share = _share_on_device(option)
    weights = elements * option.tensor.element_size() * share
    state = state_elements(option.tensor, elements) * STATE_BYTES * share
    state += bytes_beside(option.tensor, shard.size[0])
    total = storage.ddr if device == "cpu" else storage.hbm
    return weights, state, max(0.0, total - weights - state), 0 if device == "cpu" else storage.ddr


def _share_on_device(option: ShardingOption) -> float:
    """Of a table's rows"""
    if option.compute_kernel == "fused_uvm":
        return 0.0
    if option.compute_kernel == "fused_uvm_caching":
        load_factor = option.cache_params.load_factor if option.cache_params else None
        return load_factor or 0.2  # TorchRec's default
    return 1.0
