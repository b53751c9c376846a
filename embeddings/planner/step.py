"""How long a training step takes: the slowest rank's tables, the dense part, and the gradients that all ranks add up.

T = S / e + t_0, where S is what the parts take at the figures of the data sheets, e the share of those that real
training reaches, and t_0 what a step costs whatever its size. docs/step-time.md says where it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import GB, Cluster
from asymdiffrec.embeddings.planner.loads import Loads

EFFICIENCY = {"cuda": 0.65, "cpu": 1.0}
FIXED = {"cuda": 0.37, "cpu": 0.0}
"""Milliseconds. Both for GPUs were fitted on two published trainings; figures of a CPU are measured, not nominal."""


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of a step by its parts; all of them are of the rank whose tables take the longest."""

    lookups: float
    """Look-ups, their backward pass and update, and caches"""
    communication: float
    """Embeddings and their gradients between ranks"""
    launches: float
    """What shards cost by their number"""
    dense: float
    all_reduce: float
    """Of the gradients of dense parameters"""
    fixed: float
    imbalance: float
    """Of these milliseconds, what the average rank waits for the slowest"""

    @property
    def milliseconds(self) -> float:
        return self.lookups + self.communication + self.launches + self.dense + self.all_reduce + self.fixed


def step_time(loads: Loads, dense: DenseWork, cluster: Cluster) -> StepTime:
    """The step of ranks with such loads, each with the dense work, on a cluster."""
    kind = cluster.device.kind
    efficiency = EFFICIENCY[kind]
    slowest = int(loads.milliseconds.argmax())
    waiting = float(loads.milliseconds.max() - loads.milliseconds.mean())

    def of(*names: str) -> float:
        return float(sum(loads.time(name)[slowest] for name in names)) / efficiency

    return StepTime(
        lookups=of("forward", "backward", "prefetch"),
        communication=of("forward_communication", "backward_communication"),
        launches=of("launches"),
        dense=dense_milliseconds(dense, cluster) / efficiency,
        all_reduce=all_reduce_milliseconds(dense.gradients, cluster) / efficiency,
        fixed=FIXED[kind],
        imbalance=waiting / efficiency,
    )


def dense_milliseconds(dense: DenseWork, cluster: Cluster) -> float:
    """Bytes through the device's memory, and operations, one after the other."""
    device = cluster.device
    return 1000 * (dense.bytes / (device.bandwidth * GB) + dense.flops / (device.flops * 1e12))


def all_reduce_milliseconds(gradients: float, cluster: Cluster) -> float:
    """A ring within each machine, and a ring of machines to which each device brings its part."""
    device, local, nodes = cluster.device, cluster.per_node, cluster.nodes
    within = 2 * (local - 1) / local * gradients / (device.link * GB)
    between = 2 * (nodes - 1) / nodes * gradients / local / (device.nic * GB)
    return 1000 * (within + between)
