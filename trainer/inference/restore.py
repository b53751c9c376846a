"""Restore the model of a training run on one process, for evaluation, prediction and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from asymdiffrec.base import InputError
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import open_run
from asymdiffrec.trainer.train_state import TrainState, build_train_state, worker_device


@dataclass(frozen=True)
class RestoredRun:
    """The model of a run with the weights of its best step."""

    job: Job
    schema: Schema
    train_state: TrainState
    step: int
    """The best step, whose weights the model has"""


@contextmanager
def restore_run(folder: Path) -> Iterator[RestoredRun]:
    """Restore the model of a run's best step for the block, in a process group with only this process.

    The process group ends with the block. Raises InputError if the run has no checkpoint yet, and CheckpointError if
    the checkpoint is damaged.

        with restore_run(Path("runs/clicks/20260101T000000Z")) as run:
            run.train_state.recommender.score(batch)
    """
    run = open_run(folder)
    # Scoring needs no optimizer state. SGD has no state, so the tables take half the memory. Tables that were trained
    # with fused Adam, which exists on GPUs only, then load on a CPU too.
    job = run.job(("cluster={}", "tables.optimizer={name: sgd}"))
    checkpoints = Checkpoints(run.checkpoints(job))
    step = checkpoints.best()
    if step is None:
        raise InputError(f"{folder}: the run has no checkpoint yet")
    job = job.model_copy(update={"tables": job.tables.without_placement()})
    schema = job.to_schema(run.statistics())
    with process_group(dist.HashStore(), 0, 1, job.cluster, one_host=True):
        if damage := checkpoints.damage(step):
            raise CheckpointError(damage)
        train_state = build_train_state(job, schema, worker_device())
        checkpoints.load_weights(step, train_state)
        yield RestoredRun(job, schema, train_state, step)
