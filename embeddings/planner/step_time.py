"""Time of a training step: the tables' times by TorchRec, the time of the dense part, and their overlap.

The parts run one after another. With a device's efficiency e and a fixed time t0 the step takes T = S / e + t0, with

    S = look-ups forward + embeddings exchanged + dense part + all-reduce + gradients exchanged + look-ups backward

- Every exchange makes all ranks wait for the slowest, so each part takes the time of its slowest rank.
- The all-reduce of dense gradients overlaps with the dense backward pass, two thirds of the dense part. Only the time
  that is not hidden adds to S.
- Ids of the next batch are distributed during the step, on links that also carry all other traffic. Only the time that
  is not hidden adds to S.

docs/step-time.md has the derivation and the comparison with published figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torchrec.distributed.planner.types import ShardingOption

from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import GB, Cluster

BACKWARD_SHARE = 2 / 3
"""Share of the dense part's time that the backward pass takes: two of a layer's three matrix products."""

MIN_NVLINK_RATE = 100
"""Rate in GB/s, in one direction, that separates NVLink from PCIe: NVLink is always faster, PCIe always slower."""

MAX_VALIDATED_DOMAIN = 8
"""Number of GPUs in the largest NVLink domain for which the model was compared with several published figures."""


@dataclass(frozen=True)
class TableTimes:
    """Milliseconds of each rank's shards by TorchRec's estimate; every array is [ranks]."""

    forward: np.ndarray
    """Look-ups, and fetches into caches"""
    forward_communication: np.ndarray
    backward: np.ndarray
    """Gradients of look-ups, and updates"""
    backward_communication: np.ndarray
    input_distribution: np.ndarray

    @property
    def milliseconds(self) -> np.ndarray:
        """Time of each rank's tables without the distribution of ids and without waiting for other ranks, [ranks]."""
        return self.forward + self.forward_communication + self.backward + self.backward_communication


def table_times(options: Iterable[ShardingOption], ranks: int) -> TableTimes:
    """Return the times of a plan from its options. `plan_by_search` returns options with ranks and estimates.

    The times differ from TorchRec's in two ways. A shard with a share of a table's rows receives the same share of the
    ids; TorchRec counts all ids for every shard. A single rank has no communication; TorchRec counts some.
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
    """Return the time of a table's shards in milliseconds, as {rank: time}, for ranks that hold a shard."""
    milliseconds: dict[int, float] = {}
    for shard in option.shards:
        assert shard.perf is not None
        assert shard.rank is not None
        milliseconds[shard.rank] = milliseconds.get(shard.rank, 0.0) + shard.perf.total
    return milliseconds


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step by part; only the time that is not hidden by other parts counts."""

    forward: float
    """Look-ups on the slowest rank"""
    backward: float
    """Gradients of look-ups and updates on the slowest rank"""
    communication: float
    """Exchange of embeddings and of their gradients"""
    dense: float
    """Forward pass, backward pass and update of the dense part"""
    all_reduce: float
    """All-reduce of dense gradients: the time that exceeds the dense part's backward pass"""
    input_distribution: float
    """Distribution of ids: the time that exceeds the rest of the step"""
    overhead: float
    """Fixed time of a step"""
    waiting: float
    """Difference between the slowest rank and the mean of the ranks, in forward, backward and communication"""
    batch_size: int
    """Samples of all ranks in a step"""

    @property
    def milliseconds(self) -> float:
        """The sum of the parts."""
        tables = self.forward + self.backward + self.communication
        return tables + self.dense + self.all_reduce + self.input_distribution + self.overhead

    @property
    def samples_per_second(self) -> float:
        """Samples of all ranks per second."""
        return 1000 * self.batch_size / self.milliseconds

    @property
    def imbalance(self) -> float:
        """Share of the step that is lost because tables take longer on some ranks than on others."""
        return self.waiting / self.milliseconds


def step_time(tables: TableTimes, dense: DenseWork, cluster: Cluster, batch_size: int) -> StepTime:
    """Return the time of a step with `batch_size` samples on all ranks; `dense` is the dense work of one rank."""
    efficiency = cluster.device.efficiency
    phases = (tables.forward, tables.backward, tables.forward_communication, tables.backward_communication)
    forward, backward, *exchanges = (float(phase.max()) for phase in phases)
    communication = sum(exchanges)
    all_reduce, dense_time = _all_reduce_milliseconds(dense.gradients, cluster), _dense_milliseconds(dense, cluster)
    exposed_all_reduce = max(0.0, all_reduce - BACKWARD_SHARE * dense_time)
    links = communication + all_reduce + float(tables.input_distribution.max())
    exposed_input = max(0.0, links - (forward + backward + communication + dense_time + exposed_all_reduce))
    waiting = sum(float(phase.max() - phase.mean()) for phase in phases)
    return StepTime(
        forward=forward / efficiency,
        backward=backward / efficiency,
        communication=communication / efficiency,
        dense=dense_time / efficiency,
        all_reduce=exposed_all_reduce / efficiency,
        input_distribution=exposed_input / efficiency,
        overhead=cluster.device.overhead,
        waiting=waiting / efficiency,
        batch_size=batch_size,
    )


def step_time_cautions(cluster: Cluster) -> list[str]:
    """Return one line for each reason why the step time may be wrong on this cluster, see docs/step-time.md."""
    device = cluster.device
    cautions: list[str] = []
    if device.kind != "cuda" or cluster.local_world_size == 1:
        return cautions
    if device.link < MIN_NVLINK_RATE:
        cautions.append(
            f"{device.name}: a step takes longer than planned if cards share a PCIe switch; published steps took 1.2 "
            "to 3.4 times the planned time; plan --calibrate measures the link (docs/step-time.md)"
        )
    if cluster.local_world_size > MAX_VALIDATED_DOMAIN:
        cautions.append(
            f"{cluster.local_world_size} GPUs in one NVLink domain: the step time was compared with one published "
            "figure only, so its error is not known (docs/step-time.md)"
        )
    return cautions


def _dense_milliseconds(work: DenseWork, cluster: Cluster) -> float:
    """Return the time of the dense part at the device's rates, without overlap of arithmetic and memory traffic."""
    device = cluster.device
    return 1000 * (work.flops / (device.flops * 1e12) + work.bytes / (device.bandwidth * GB))


def _all_reduce_milliseconds(size: int, cluster: Cluster) -> float:
    """Return the time to all-reduce `size` bytes per rank: by rings within hosts, then by rings across hosts.

    A ring across hosts connects the ranks with the same local rank.
    """
    within, across = ((count - 1) / count for count in (cluster.local_world_size, cluster.nodes))
    device = cluster.device
    return 1000 * 2 * size / GB * (within / device.link + across / (cluster.local_world_size * device.nic))
