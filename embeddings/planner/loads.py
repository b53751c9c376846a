"""What a plan gives each rank to do and to hold, by TorchRec's estimates of its shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.shard_estimators import _get_optimizer_multipler
from torchrec.distributed.planner.types import Shard, ShardingOption, Topology

from asymdiffrec.embeddings.planner.estimators import STATE_BYTES
from asymdiffrec.embeddings.planner.ways import LAUNCH

TIMES = ("forward", "forward_communication", "backward", "backward_communication", "prefetch", "launches")
"""Milliseconds of a step: look-ups and their communication, rows fetched into caches, and what shards cost by number"""
BYTES = ("weights", "state", "activations", "host")
"""Of tables, their optimizer's state, and their ids and embeddings in flight; `host`, in the memory of the machine"""


@dataclass(frozen=True)
class Loads:
    """TIMES and BYTES of each rank."""

    times: np.ndarray
    """[ranks, len(TIMES)]"""
    bytes: np.ndarray
    """[ranks, len(BYTES)]"""

    def time(self, name: str) -> np.ndarray:
        """Milliseconds of one of TIMES, [ranks]."""
        return self.times[:, TIMES.index(name)]

    @property
    def milliseconds(self) -> np.ndarray:
        """[ranks]"""
        return self.times.sum(axis=1)

    @property
    def device_bytes(self) -> np.ndarray:
        """[ranks]"""
        return self.bytes[:, : BYTES.index("host")].sum(axis=1)


def loads(options: Sequence[ShardingOption], topology: Topology) -> Loads:
    """What the shards of `options`, which have their ranks and estimates, are to each rank of the topology."""
    times, size = np.zeros((topology.world_size, len(TIMES))), np.zeros((topology.world_size, len(BYTES)))
    for option in options:
        for shard in option.shards:
            assert shard.rank is not None
            times[shard.rank] += shard_times(shard)
            size[shard.rank] += shard_bytes(option, shard, topology.compute_device)
    return Loads(times, size)


def shard_times(shard: Shard) -> np.ndarray:
    """TIMES of one shard."""
    perf = shard.perf
    assert perf is not None
    return np.array([perf.fwd_compute, perf.fwd_comms, perf.bwd_compute, perf.bwd_comms, perf.prefetch_compute, LAUNCH])


def shard_bytes(option: ShardingOption, shard: Shard, device: str) -> np.ndarray:
    """BYTES of one shard."""
    storage = shard.storage
    assert storage is not None
    elements = math.prod(shard.size)
    (optimizer,) = getattr(option.tensor, "_optimizer_classes", [None])
    weights = elements * option.tensor.element_size()
    state = elements * _get_optimizer_multipler(optimizer, option.tensor.shape) * STATE_BYTES
    on_device = held_on_device(option)
    total = storage.ddr if device == "cpu" else storage.hbm
    parts = weights * on_device, state * on_device
    return np.array([*parts, max(0.0, total - sum(parts)), 0 if device == "cpu" else storage.ddr])


def held_on_device(option: ShardingOption) -> float:
    """The share of a table's rows that are in the device's memory."""
    if option.compute_kernel == "fused_uvm":
        return 0.0
    if option.compute_kernel == "fused_uvm_caching":
        load_factor = option.cache_params.load_factor if option.cache_params else None
        return load_factor or 0.2  # TorchRec's default
    return 1.0
