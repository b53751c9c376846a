"""A worker among the others: the process group of all of them, and which share a machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.errors import ClusterError


@dataclass(frozen=True)
class Place:
    """What a worker is told of where it runs."""

    machines: Sequence[Sequence[int]]
    """The ranks on each"""
    leaving: Callable[[], bool] = lambda: False
    """Whether a machine of the workers is about to be taken away"""
    publish: Callable[[Mapping[str, Any]], None] = lambda values: None
    """Gives the numbers among some values to Ray's metrics, which Prometheus collects"""


Work = Callable[[Mapping[str, Any], Place], None]


@contextmanager
def process_group(store: dist.Store, rank: int, count: int, cluster: ClusterConfig, one_node: bool) -> Iterator[None]:
    """The default process group, NCCL with gloo for CPU tensors on GPUs and gloo elsewhere, taken down at the end."""
    if one_node:
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    backend = "cpu:gloo,cuda:nccl" if cluster.resolved().gpu else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=cluster.timeout_seconds)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def machines_of(machine: str) -> list[list[int]]:
    """The ranks on each machine, in their order; `machine` is a name of this worker's. A collective call."""
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, machine)
    return [[rank for rank, name in enumerate(names) if name == one] for one in dict.fromkeys(names)]


def place_on(machines: Sequence[Sequence[int]], local_rank: int, gpu: bool) -> None:
    """Tell TorchRec which ranks share a machine: runs of as many neighbours on each.

    Where they are no such runs, each rank counts as a machine of its own, which a GPU's number does not allow:
    ClusterError then.
    """
    size = len(machines[0])
    runs = all(list(ranks) == list(range(place * size, (place + 1) * size)) for place, ranks in enumerate(machines))
    if not runs and gpu:
        raise ClusterError(
            f"the workers are placed on machines as {list(map(list, machines))}; as many are needed on each, in order: "
            "choose another number of workers, or machines with as many GPUs"
        )
    os.environ["LOCAL_RANK"] = str(local_rank if runs else 0)
    os.environ["LOCAL_WORLD_SIZE"] = str(size if runs else 1)
