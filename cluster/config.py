"""The `cluster:` section of a job file: how many workers there are, and where they run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator

from asymdiffrec.base import Config


class WorkerRange(Config):
    """A smallest and a largest number of workers; the cluster's free resources decide between them."""

    min: int = Field(gt=0, description="training waits while the cluster has resources for fewer workers")
    max: int = Field(gt=0, description="never start more workers")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, more than max ({self.max})")
        return self


class ClusterConfig(Config):
    """Number and resources of the workers, and the Ray cluster that they run on."""

    workers: Annotated[int, Field(gt=0)] | WorkerRange = Field(
        1,
        description="1 runs in this process, more run under Ray Train; {min: 2, max: 8}: as many as the cluster has "
        "resources for",
    )
    gpu: bool | None = Field(
        None, description="one GPU per worker; null: if CUDA is available and the CUDA build of FBGEMM is installed"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for each worker")
    address: str | None = Field(None, description="Ray cluster to use; null: start one on this host for this run")
    device: str | None = Field(
        None, description="device that the planner assumes for each worker: a name or YAML file as for plan --gpu"
    )
    max_failures: int = Field(
        3, ge=0, description="start Ray's workers again after at most this many failures or deaths of workers"
    )
    resize_seconds: float = Field(
        60, gt=0, description="seconds between checks whether a range of workers can use more workers"
    )
    timeout_seconds: float = Field(
        1800, gt=0, description="seconds that a collective operation waits for the slowest worker"
    )

    @property
    def worker_range(self) -> WorkerRange:
        """`workers` as a range; a number becomes the range of that number alone."""
        if isinstance(self.workers, WorkerRange):
            return self.workers
        return WorkerRange(min=self.workers, max=self.workers)

    def resolved(self) -> ClusterConfig:
        """Return this section with `gpu` true or false, so that the command and its workers agree."""
        if self.gpu is not None:
            return self
        return self.model_copy(update={"gpu": torch.cuda.is_available() and _is_installed("fbgemm-gpu")})


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
