"""Run one function on every worker: in this process for one, under Ray Train for more, or where torchrun has started
them. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from asymdiffrec.cluster import torchrun_workers as under_torchrun
from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.errors import ClusterError
from asymdiffrec.cluster.process_group import Place, Work, process_group


def launch(
    work: Work,
    arguments: Mapping[str, Any],
    cluster: ClusterConfig,
    storage: Path,
    *,
    permanent: tuple[type[Exception], ...] = (),
    allowed: Callable[[int], bool] = lambda count: True,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Call `work` on every worker with a process group of all of them; returns when all are done.

    `arguments` travel to other processes and must pickle. `storage` is a folder all nodes see, for Ray's own files.
    Where a worker under Ray dies or fails, all are started again and called anew, which `tell` hears of, but not after
    an error that is one of `permanent`, nor more often than the cluster says, without counting LeavingError. A range of
    workers is as many as there is room for among the numbers that are `allowed`. Where torchrun has started this
    process it is the first worker, and the others `follow`; torchrun starts them again, if it is told to.

    Raises ClusterError where no such cluster can be had, WorkerError where a worker under Ray fails for good, and what
    `work` raises where it runs in this process.
    """
    cluster = cluster.resolved()
    if under_torchrun.started():
        under_torchrun.lead(work, arguments, cluster)
        return
    if cluster.workers == 1 and cluster.address is None:
        with process_group(dist.HashStore(), 0, 1, cluster, one_node=True):
            work(arguments, Place([[0]]))
        return
    if cluster.address is None:
        stay_on_loopback()
    from asymdiffrec.cluster.ray_workers import run_workers  # Ray takes seconds to import

    numbers = [count for count in range(cluster.range.min, cluster.range.max + 1) if allowed(count)]
    if not numbers:
        raise ClusterError(f"no number of workers from {cluster.range.min} to {cluster.range.max} is possible here")
    run_workers(work, arguments, cluster, storage, permanent, numbers, tell)


def stay_on_loopback() -> None:
    """Have a Ray cluster that this process starts listen on 127.0.0.1 alone: by default it does on all addresses,
    whatever address its node is given. To be called before Ray is imported; elsewhere Ray does so by itself."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
