"""Run a function on every worker: in this process, under Ray Train, or in processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from asymdiffrec.cluster import torchrun_workers
from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.context import ClusterContext, WorkerFunction
from asymdiffrec.cluster.errors import ClusterError
from asymdiffrec.cluster.process_group import process_group


def launch(
    work: WorkerFunction,
    arguments: Mapping[str, Any],
    cluster: ClusterConfig,
    storage: Path,
    *,
    permanent_errors: tuple[type[Exception], ...] = (),
    is_allowed: Callable[[int], bool] = lambda world_size: True,
    on_restart: Callable[[str], None] = lambda line: None,
) -> None:
    """Call `work` on every worker in a process group of all workers; return when all workers are done.

    If torchrun started this process, this process is rank 0, and the other ranks call `torchrun_workers.follow`. A
    single worker without a cluster address runs in this process. Otherwise the workers run under Ray Train.

    arguments: the first argument of `work`; must be picklable.
    storage: a folder that all nodes share, for files of Ray.
    permanent_errors: under Ray, errors of a worker after which the workers are not started again. After any other error
    or the death of a worker, all workers are started again and call `work` again, up to `cluster.max_failures` times;
    HostLeavingError does not count. Under torchrun, torchrun restarts the workers.
    is_allowed: a function that returns whether `work` can run on a given number of workers. For a range of workers, Ray
    starts the largest allowed number of workers for which the cluster has resources.
    on_restart: called each time that Ray starts the workers again, with one line that gives the reason.

    Raises ClusterError if the cluster cannot be used, and WorkerError if a worker under Ray fails permanently. An
    exception of `work` in this process is raised unchanged.

    >>> launch(lambda arguments, context: print(arguments["name"]), {"name": "one"}, ClusterConfig(), Path("storage"))
    one
    """
    cluster = cluster.resolved()
    if torchrun_workers.rank_and_world_size():
        torchrun_workers.lead(work, arguments, cluster)
        return
    if cluster.workers == 1 and cluster.address is None:
        with process_group(dist.HashStore(), 0, 1, cluster, one_host=True):
            work(arguments, ClusterContext([[0]]))
        return
    if cluster.address is None:
        stay_on_loopback()
    from asymdiffrec.cluster.ray_workers import run_workers  # Ray takes seconds to import

    fewest, most = cluster.worker_range.min, cluster.worker_range.max
    world_sizes = [size for size in range(fewest, most + 1) if is_allowed(size)]
    if not world_sizes:
        raise ClusterError(f"cluster.workers: this job cannot use any number of workers from {fewest} to {most}")
    run_workers(work, arguments, cluster, storage, permanent_errors, world_sizes, on_restart)


def stay_on_loopback() -> None:
    """Restrict a Ray cluster that this process starts to the address 127.0.0.1; call it before Ray is imported.

    On Linux Ray listens on all addresses by default. With this environment variable it listens only on the address of
    the node, as on other systems.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
