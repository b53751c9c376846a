"""How long a training step takes: the tables' times by TorchRec, the dense part, and what hides behind what.

The parts follow one another, in a device's efficiency e, after a fixed time t0: T = S / e + t0, with

    S = look-ups forward + vectors exchanged + dense part + all-reduce + gradients exchanged + look-ups backward

- every exchange makes all ranks wait for the slowest, so each part takes what it takes on the slowest rank;
- gradients of the dense part are added up while its backward pass, two thirds of it, goes on: what is longer shows;
- ids of the next batch are distributed during the step, on links that are busy with the rest: what is longer shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.types import ShardingOption

from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import GB, Cluster

BACKWARD = 2 / 3
"""Of the dense part: of a layer's three matrix products, two are of the backward pass"""

LEAST_NVLINK = 100
"""GB/s in one direction; the widest PCIe slot has less"""


@dataclass(frozen=True)
class TableTimes:
    """Milliseconds that each rank's shards take by TorchRec's estimate, each [ranks]."""

    forward: np.ndarray
    """Look-ups, and fetches for caches"""
    forward_communication: np.ndarray
    backward: np.ndarray
    """Look-ups and updates"""
    backward_communication: np.ndarray
    input_distribution: np.ndarray

    @property
    def milliseconds(self) -> np.ndarray:
        """What a rank does while others may wait for it, [ranks]."""
        return self.forward + self.forward_communication + self.backward + self.backward_communication


def table_times(options: Iterable[ShardingOption], ranks: int) -> TableTimes:
    """The times of a plan whose shards have their ranks and estimates, as `plan_fast` gives them.

    TorchRec has every shard receive a table's ids; here one that holds a share of the rows receives that share, and a
    single rank, to which TorchRec gives exchanges too, has nobody to exchange with.
    """
    times = TableTimes(*np.zeros((5, ranks)))
    for option in options:
        for shard in option.shards:
            perf, rank = shard.perf, shard.rank
            assert perf is not None
            assert rank is not None
            times.forward[rank] += perf.fwd_compute + perf.prefetch_compute
            times.forward_communication[rank] += perf.fwd_comms if ranks > 1 else 0.0
            times.backward[rank] += perf.bwd_compute
            times.backward_communication[rank] += perf.bwd_comms if ranks > 1 else 0.0
            times.input_distribution[rank] += perf.input_dist_comms * shard.size[0] / option.tensor.shape[0]
    return times


def shard_milliseconds(option: ShardingOption) -> dict[int, float]:
    """What a table's shards take on each rank that has one."""
    found: dict[int, float] = {}
    for shard in option.shards:
        assert shard.perf is not None
        assert shard.rank is not None
        found[shard.rank] = found.get(shard.rank, 0.0) + shard.perf.total
    return found


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step by part; of what runs beside something longer only the rest is counted."""

    forward: float
    """Look-ups on the slowest rank"""
    backward: float
    """Look-ups and updates on the slowest rank"""
    communication: float
    """Of embeddings and their gradients"""
    dense: float
    all_reduce: float
    """Beyond the dense part's backward pass"""
    input_distribution: float
    """Beyond the rest of the step"""
    overhead: float
    waiting: float
    """Of forward, backward and communication, what the slowest rank takes more than the mean one"""
    batch_size: int
    """Of all ranks"""

    @property
    def milliseconds(self) -> float:
        """The sum of the parts."""
        tables = self.forward + self.backward + self.communication
        return tables + self.dense + self.all_reduce + self.input_distribution + self.overhead

    @property
    def samples_per_second(self) -> float:
        return 1000 * self.batch_size / self.milliseconds

    @property
    def imbalance(self) -> float:
        """Share of the step that is lost because tables do not take all ranks the same time."""
        return self.waiting / self.milliseconds


def step_time(tables: TableTimes, dense: DenseWork, cluster: Cluster, batch_size: int) -> StepTime:
    """The time of a step with a global batch of `batch_size`, of which a rank's `dense` has its share."""
    reached = cluster.device.efficiency
    phases = (tables.forward, tables.backward, tables.forward_communication, tables.backward_communication)
    forward, backward, *exchanges = (float(phase.max()) for phase in phases)
    communication = sum(exchanges)
    reduction, computed = _all_reduce(dense.gradients, cluster), _dense(dense, cluster)
    exposed = max(0.0, reduction - BACKWARD * computed)
    links = communication + reduction + float(tables.input_distribution.max())
    late = max(0.0, links - (forward + backward + communication + computed + exposed))
    waiting = sum(float(phase.max() - phase.mean()) for phase in phases)
    return StepTime(
        forward=forward / reached,
        backward=backward / reached,
        communication=communication / reached,
        dense=computed / reached,
        all_reduce=exposed / reached,
        input_distribution=late / reached,
        overhead=cluster.device.overhead,
        waiting=waiting / reached,
        batch_size=batch_size,
    )


def doubts(cluster: Cluster) -> list[str]:
    """Where the model is known to miss on such a cluster, or where little is known, a line each."""
    device = cluster.device
    found: list[str] = []
    if device.kind != "cuda" or cluster.per_node == 1:
        return found
    if device.link < LEAST_NVLINK:
        found.append(
            f"{device.name}: where cards share a PCIe switch a step takes longer than this, published ones 1.2 to 3.4 "
            "times as long; plan --calibrate measures the link (docs/step-time.md)"
        )
    if cluster.per_node > 8:
        found.append(
            f"{cluster.per_node} GPUs in one NVLink domain: one published figure is known there, so little tells how "
            "good this is (docs/step-time.md)"
        )
    return found


def _dense(work: DenseWork, cluster: Cluster) -> float:
    """Milliseconds at the device's figures; matrix products do not overlap with what is bound by memory."""
    device = cluster.device
    return 1000 * (work.flops / (device.flops * 1e12) + work.bytes / (device.bandwidth * GB))


def _all_reduce(size: int, cluster: Cluster) -> float:
    """Milliseconds for `size` bytes on each rank: in rings within machines, then of like ranks across machines."""
    within, across = ((count - 1) / count for count in (cluster.per_node, cluster.nodes))
    device = cluster.device
    return 1000 * 2 * size / GB * (within / device.link + across / (cluster.per_node * device.nic))
