"""The `cluster:` section of a job file: how many workers there are, and where they run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from asymdiffrec.base import Config


class WorkerRange(Config):
    """As many workers as the cluster has room for"""

    min: int = Field(gt=0, description="training waits where there is room for fewer")
    max: int = Field(gt=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max ({self.max})")
        return self


class ClusterConfig(Config):
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
