"""Run one function on every worker: in this process for one worker, under Ray Train for more. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkerRange(_Config):
    """As many workers as the cluster has room for"""

    min: int = Field(gt=0, description="training waits where there is room for fewer")
    max: int = Field(gt=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max ({self.max})")
        return self


class ClusterConfig(_Config):
    workers: Annotated[int, Field(gt=0)] | WorkerRange = Field(
        1,
        description="one runs in this process, more under Ray Train; {min: 2, max: 8}: as many as there is room for",
    )
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
    resize_seconds: float = Field(
        60,
        gt=0,
        description="how often a range of workers looks for room for more of them",
    )
    timeout_seconds: float = Field(
        1800, gt=0, description="how long a collective operation waits for the slowest worker"
    )

    @property
    def range(self) -> WorkerRange:
        if isinstance(self.workers, WorkerRange):
            return self.workers
        return WorkerRange(min=self.workers, max=self.workers)

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


class LeavingError(RuntimeError):
    """A machine of the workers is about to be taken away, and what they did is safe: for `work` to raise."""


def last_line(error: BaseException) -> str:
    """What an exception says, in a line: the last one of its text, or its name where it says nothing."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


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
    workers is as many as there is room for among the numbers that are `allowed`.

    Raises ClusterError where no such cluster can be had, WorkerError where a worker under Ray fails for good, and what
    `work` raises where it runs in this process.
    """
    cluster = cluster.resolved()
    if cluster.workers == 1 and cluster.address is None:
        with process_group(dist.HashStore(), 0, 1, cluster, one_node=True):
            work(arguments, Place([[0]]))
        return
    if cluster.address is None:
        stay_on_loopback()
    from asymdiffrec.cluster.under_ray import run_workers  # Ray takes seconds to import

    numbers = [count for count in range(cluster.range.min, cluster.range.max + 1) if allowed(count)]
    if not numbers:
        raise ClusterError(f"no number of workers from {cluster.range.min} to {cluster.range.max} is possible here")
    run_workers(work, arguments, cluster, storage, permanent, numbers, tell)


def stay_on_loopback() -> None:
    """Have a Ray cluster that this process starts listen on 127.0.0.1 alone: by default it does on all addresses,
    whatever address its node is given. To be called before Ray is imported; elsewhere Ray does so by itself."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


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
