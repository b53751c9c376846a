"""Fixtures of checkpoint tests: a model in this process, and batches to train it with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.train_state import TrainState, build_train_state, worker_device
from tests.trainer.checkpoints.models import Build


@pytest.fixture(scope="module")
def batches(clicks: Path) -> list[Batch]:
    """Three training batches of the small data set."""
    job = read_job(clicks / "job.yaml", ["train.batch_size=256"])
    schema = job.to_schema(read_statistics(job))
    reader = TrainingReader(schema, open_shards(job.location("train")), job.train.seed, job.train.batch_size)
    return list(islice(reader.batches(reader.position(0)), 3))


@pytest.fixture
def train_state(clicks: Path) -> Iterator[Build]:
    """A function that builds a model with overrides, in a process group of this process only."""

    def make(*overrides: str) -> TrainState:
        job = read_job(clicks / "job.yaml", ["train.batch_size=256", *overrides])
        return build_train_state(job, job.to_schema(read_statistics(job)), worker_device())

    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True):
        yield make
