"""The `cluster:` section of a job file: how many workers there are, and where they run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from asymdiffrec.base import Config


class WorkerRange(Config):
    """A smallest and a largest number of workers. The free resources of the cluster determine the number."""

    min: int = Field(
        gt=0, description="smallest number; training waits while the cluster has resources for fewer workers"
    )
    max: int = Field(gt=0, description="largest number")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        return self


class ClusterConfig(Config):
    """Number and resources of the workers, and the Ray cluster that they run on."""

    workers: Annotated[int, Field(gt=0)] | WorkerRange = Field(
        1,
        description="number of workers: 1 runs in this process, more run under Ray Train; {min: 2, max: 8}: the "
        "largest number in this range for which the cluster has resources",
    )
    gpu: bool | None = Field(
        None,
        description="use one GPU per worker; null: true if CUDA is available and the CUDA build of FBGEMM is installed",
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for each worker")
    address: str | None = Field(None, description="Ray cluster to use; null: start one on this host for this run")
    device: str | None = Field(
        None, description="device that the planner assumes for each worker: a name or a YAML file, as in plan --gpu"
    )
    max_failures: int = Field(
        3, ge=0, description="maximum number of times that Ray starts the workers again after a worker failed or died"
    )
    resize_seconds: float = Field(
        60, gt=0, description="for a range of workers: seconds between checks for resources for more workers"
    )
    timeout_seconds: float = Field(
        1800, gt=0, description="seconds that a collective operation waits for the slowest worker"
    )

    @property
    def worker_range(self) -> WorkerRange:
        """`workers` as a range; a number N becomes the range from N to N."""
        if isinstance(self.workers, WorkerRange):
            return self.workers
        return WorkerRange(min=self.workers, max=self.workers)

    def resolved(self) -> ClusterConfig:
        """Return this section with `gpu` set to true or false, so that the command and its workers use one value."""
        if self.gpu is not None:
            return self
        return self.model_copy(update={"gpu": torch.cuda.is_available() and _is_installed("fbgemm-gpu")})


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
