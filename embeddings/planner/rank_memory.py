"""Memory that a plan needs on each rank, from TorchRec's estimates of its shards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.types import Shard, ShardingOption, Topology

from asymdiffrec.embeddings.planner.estimators import STATE_ELEMENT_BYTES, managed_id_bytes
from asymdiffrec.embeddings.torchrec_compat import optimizer_state_elements

DEFAULT_CACHE_LOAD_FACTOR = 0.2
"""TorchRec's default share of rows in the cache of a fused_uvm_caching table."""


@dataclass(frozen=True)
class TableMemory:
    """Bytes of tables on each rank; every array is [ranks]."""

    weights: np.ndarray
    state: np.ndarray
    """Optimizer state, and ids of managed rows"""
    activations: np.ndarray
    """Ids and embeddings that ranks exchange"""
    host: np.ndarray
    """Bytes in host memory; the other arrays are bytes on the device"""

    @property
    def device(self) -> np.ndarray:
        """Bytes on the device, [ranks]."""
        return self.weights + self.state + self.activations


def table_memory(options: Iterable[ShardingOption], topology: Topology) -> TableMemory:
    """Return the memory of a plan from its options. `plan_by_search` returns options with ranks and estimates."""
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
    """Return the bytes of one shard: weights, state, activations and host, as in TableMemory."""
    storage = shard.storage
    assert storage is not None
    elements = math.prod(shard.size)
    share = _share_on_device(option)
    weights = elements * option.tensor.element_size() * share
    state = optimizer_state_elements(option.tensor, elements) * STATE_ELEMENT_BYTES * share
    state += managed_id_bytes(option.tensor, shard.size[0])
    total = storage.ddr if device == "cpu" else storage.hbm
    return weights, state, max(0.0, total - weights - state), 0 if device == "cpu" else storage.ddr


def _share_on_device(option: ShardingOption) -> float:
    """Return the share of a table's rows that is in device memory."""
    if option.compute_kernel == "fused_uvm":
        return 0.0
    if option.compute_kernel == "fused_uvm_caching":
        load_factor = option.cache_params.load_factor if option.cache_params else None
        return load_factor or DEFAULT_CACHE_LOAD_FACTOR
    return 1.0
