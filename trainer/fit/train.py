"""The command side of training: check the input, start the workers, show their progress, handle Ctrl-C."""

from __future__ import annotations

import fcntl
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from asymdiffrec.base import InputError
from asymdiffrec.cluster import torchrun_workers
from asymdiffrec.cluster.errors import WorkerError
from asymdiffrec.cluster.launch import launch
from asymdiffrec.datasets.reader import TrainingReader, WorkerContext
from asymdiffrec.datasets.shards import Shards, added_files, open_shards
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.managed.ids import ROWS_PER_SET
from asymdiffrec.embeddings.planner.plan_document import world_size_mismatch
from asymdiffrec.trainer.checkpoints.init_from import plan_init
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation.evaluate import evaluation_reader
from asymdiffrec.trainer.fit.report import describe_unused_files, init_table, show_progress
from asymdiffrec.trainer.fit.worker import train_worker
from asymdiffrec.trainer.job import Job, total_steps
from asymdiffrec.trainer.run import Run, open_run

PERMANENT_ERRORS = (InputError, TrainingError)
"""Errors that a restart of the workers would only repeat"""


def check_job(
    job: Job, statistics: Statistics, training_files: Mapping[str, Sequence[int]] | None
) -> tuple[int, Shards]:
    """Check a job against the footers of its Parquet files. Return the steps of the whole run, and the training shards.

    `training_files` are the files that the run was started with, see `Run.training_files`; None for a new run. Raises
    InputError for every mistake that the footers show.
    """
    schema = job.to_schema(statistics)
    context = WorkerContext(0, _max_workers(job))
    for split in ("valid", "test"):
        evaluation_reader(job, schema, split, context)
    shards = open_shards(job.location("train"), training_files)
    reader = TrainingReader(schema, shards, job.train.seed, job.train.batch_size, context)
    return total_steps(job, reader.steps_per_epoch), shards


def _max_workers(job: Job) -> int:
    """Return the largest possible number of workers. If the number is fixed, return it; the reader checks it."""
    fewest, most = job.cluster.worker_range.min, job.cluster.worker_range.max
    if fewest == most:
        return most
    for count in range(most, fewest - 1, -1):
        if _is_possible(job, count):
            return count
    raise InputError(
        f"cluster.workers: no number from {fewest} to {most} divides data.lanes ({job.data.lanes}) and, for each "
        f"managed table, num_embeddings / {ROWS_PER_SET}"
    )


def _is_possible(job: Job, workers: int) -> bool:
    """Return whether lanes and managed tables can be divided equally among this number of workers."""
    tables = job.to_schema().tables
    managed = [tables[name].num_embeddings for name in job.tables.managed_tables]
    return job.data.lanes % workers == 0 and all(rows % (ROWS_PER_SET * workers) == 0 for rows in managed)


def train_job(
    job: Job, statistics: Statistics, run: Run, console: Console, plan: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train in a run directory until the run ends or is interrupted, and return its result.

    If the directory has a checkpoint, training continues from the newest one. `plan` is the document of a sharding
    plan; if it is None, a plan is computed for the workers of the job. Raises InputError if the input is wrong; a new
    run directory is then deleted again.

        job = read_job(Path("clicks/job.yaml"))
        result = train_job(job, read_statistics(job), new_run(job, None), Console())
    """
    steps, shards = check_job(job, statistics, run.training_files())
    fewest, most = job.cluster.worker_range.min, job.cluster.worker_range.max
    if plan and (mismatch := world_size_mismatch(plan, fewest, most)):
        raise InputError(mismatch)
    if added := added_files(job.location("train"), shards.record):
        console.print(describe_unused_files(added), highlight=False, soft_wrap=True)
    init = None
    if job.train.init_from and not Checkpoints(run.checkpoints(job)).steps():
        init = plan_init(open_run(Path(job.train.init_from)), job, job.to_schema(statistics))
        console.print(init_table(init))
    with _locked(run):
        run.write_inputs(job, statistics)
        run.write_training_files(shards.record)
        arguments = {
            "job": job.model_dump(mode="json"),
            "statistics": statistics.model_dump(mode="json"),
            "run": str(run.path.resolve()),
            "plan": plan,
            "init": init,
        }
        return _run_workers(job, run, steps, console, arguments)


def _run_workers(job: Job, run: Run, steps: int, console: Console, arguments: Mapping[str, Any]) -> dict[str, Any]:
    is_new = not run.metrics_file.exists()
    run.remove_result()
    if job.cluster.worker_range.max > 1 and not torchrun_workers.rank_and_world_size():
        console.print("Starting workers under Ray")
    try:
        with show_progress(run.metrics_file, steps, console), _stop_on_signal(run, console):
            launch(
                train_worker,
                arguments,
                job.cluster,
                run.ray_folder,
                permanent_errors=PERMANENT_ERRORS,
                is_allowed=partial(_is_possible, job),
                on_restart=lambda line: console.print(line, soft_wrap=True, highlight=False),
            )
    except (InputError, WorkerError) as error:
        reason = error.__cause__ if isinstance(error, WorkerError) else error
        if not isinstance(reason, InputError):
            raise
        if is_new and not Checkpoints(run.checkpoints(job)).steps():
            shutil.rmtree(run.path)
        raise InputError(str(reason)) from error
    result = run.result()
    assert result is not None, "the workers ended without a result"
    return result


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    """Lock the run directory for the block, and create it if it does not exist.

    Raises InputError if another training has locked it, or if it cannot be created.
    """
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        file = run.lock_file.open("w")
    except OSError as error:
        raise InputError(
            f"{run.path}: cannot write in this directory ({error.strerror}); choose another --run"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{run.path}: another training is running in this directory; wait until it ends, or choose another "
                "--run"
            ) from None
        yield


@contextmanager
def _stop_on_signal(run: Run, console: Console) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a request to stop with a checkpoint; the second one ends the command."""

    def request(number: int, frame: FrameType | None) -> None:
        if run.stop_file.exists():
            raise KeyboardInterrupt
        run.stop_file.touch()
        message = "Stopping after this step, with a checkpoint. Interrupt again to stop immediately without one."
        console.print(message, soft_wrap=True)

    run.stop_file.unlink(missing_ok=True)
    handlers = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        run.stop_file.unlink(missing_ok=True)
