"""Run one function on every worker: in this process for one worker, under Ray Train for more. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field

Work = Callable[[Mapping[str, Any], Callable[[], bool]], None]
"""Of the arguments, and of what tells whether this worker's machine is about to be taken away"""


class ClusterConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(1, gt=0, description="one runs in this process, more run under Ray Train")
    gpu: bool | None = Field(None, description="one GPU a worker; left out: where CUDA and FBGEMM's build for it are")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker")
    address: str | None = Field(
        None, description="Ray cluster to use; left out: a cluster of this machine, for this run"
    )
    device: str | None = Field(
        None, description="what `plan` and the planner take a worker for: a name or YAML file that plan --gpu takes"
    )
    max_failures: int = Field(
        3, ge=0, description="times that workers under Ray are started again after one has died or failed"
    )
    timeout_seconds: float = Field(
        1800, gt=0, description="how long a collective operation waits for the slowest worker"
    )

    def resolved(self) -> ClusterConfig:
        """With `gpu` decided, so that the command and its workers agree on it."""
        if self.gpu is not None:
            return self
        return self.model_copy(update={"gpu": torch.cuda.is_available() and _installed("fbgemm-gpu")})


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


class ClusterError(ValueError):
    """There is no such cluster, or it lacks what the workers ask for."""


class WorkerError(RuntimeError):
    """The work failed on a worker. Its cause is the exception of the first worker that failed, where Ray kept it."""


def launch(
    work: Work,
    arguments: Mapping[str, Any],
    cluster: ClusterConfig,
    storage: Path,
    permanent: tuple[type[Exception], ...] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Call `work` on every worker with a process group of all of them; returns when all are done.

    `arguments` travel to other processes and must pickle. `storage` is a folder all nodes see, for Ray's own files.
    Where a worker under Ray dies or fails, all are started again and called anew, which `tell` hears of, but not after
    an error that is one of `permanent`, nor more often than the cluster says.

    Raises ClusterError where no such cluster can be had, WorkerError where a worker under Ray fails for good, and what
    `work` raises where it runs in this process.
    """
    cluster = cluster.resolved()
    if cluster.workers == 1 and cluster.address is None:
        with process_group(dist.HashStore(), 0, 1, cluster, one_node=True):
            work(arguments, lambda: False)
    else:
        from asymdiffrec.cluster.under_ray import run_workers  # Ray takes seconds to import

        run_workers(work, arguments, cluster, storage, permanent, tell)


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
