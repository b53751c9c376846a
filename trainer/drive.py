"""What the command does around the workers: check the input before they start, follow them, pass on Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console

from asymdiffrec.cluster.launch import launch
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.reader import EvaluationReader, TrainingReader, Worker
from asymdiffrec.datasets.schema import Learned
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.trainer import loop
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.report import followed
from asymdiffrec.trainer.run import Run


def check(job: Job, learned: Learned) -> int:
    """The steps of the whole run. Raises InputError for whatever the footers of the Parquet files show to be wrong."""
    schema = job.to_schema(learned)
    worker = Worker(0, job.cluster.workers)
    for split in ("valid", "test"):
        EvaluationReader(schema, open_shards(job.location(split)), job.train.batch_size, worker)
    reader = TrainingReader(schema, open_shards(job.location("train")), job.train.seed, job.train.batch_size, worker)
    return loop.total_steps(job, reader.steps_per_epoch)


def train(job: Job, learned: Learned, run: Run, resume: bool, console: Console) -> dict[str, Any]:
    """Train in a run directory until the work is done or interrupted; returns how it ended."""
    steps = check(job, learned)
    run.write_inputs(job, learned)
    (run.path / "result.json").unlink(missing_ok=True)
    arguments = {
        "job": job.model_dump(mode="json"),
        "learned": learned.model_dump(mode="json"),
        "run": str(run.path.resolve()),
        "resume": resume,
    }
    with followed(run.metrics, steps, console), _stops(run, console):
        launch(loop.work, arguments, job.cluster, run.path)
    result = run.result()
    assert result is not None, "the workers ended without a result"
    return result


@contextmanager
def _stops(run: Run, console: Console) -> Iterator[None]:
    """Turn a first SIGINT or SIGTERM into a request to stop with a checkpoint; a second one ends the command."""

    def request(number: int, frame: FrameType | None) -> None:
        if run.stop.exists():
            raise KeyboardInterrupt
        run.stop.touch()
        message = "Stopping at the next logged step, with a checkpoint. Once more to stop at once, without one."
        console.print(message, soft_wrap=True)

    run.stop.unlink(missing_ok=True)
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        run.stop.unlink(missing_ok=True)


def best_step(run: Run) -> int:
    """The step that the run is judged by: the best on validation, or the newest where none was validated."""
    from asymdiffrec.trainer.checkpoint import read_progress

    steps = run.steps()
    if not steps:
        raise InputError(f"{run.path}: no checkpoint yet")
    progress = read_progress(run.checkpoint(steps[-1]))
    return progress.best_step if progress.best_value is not None else steps[-1]
