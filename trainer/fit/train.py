"""What the command does around the workers: check the input before they start, follow them, pass on Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic_core import to_jsonable_python
from rich.console import Console

from asymdiffrec.base import InputError
from asymdiffrec.cluster import torchrun_workers
from asymdiffrec.cluster.errors import WorkerError
from asymdiffrec.cluster.launch import launch
from asymdiffrec.datasets.files.documents import difference
from asymdiffrec.datasets.reader import TrainingReader, WorkerContext
from asymdiffrec.datasets.shards import Shards, added_files, open_shards
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.managed.ids import WAYS
from asymdiffrec.trainer.checkpoints.init_from import start_from
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation.evaluate import evaluation_reader
from asymdiffrec.trainer.fit import loop
from asymdiffrec.trainer.fit.report import described_start, followed, unused
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import Run, open_run

FIXED = (
    *("data.lanes", "data.window", "fields", "model", "train.seed", "train.batch_size", "train.accumulate"),
    *("tables.embedding_dim", "tables.optimizer.name", "tables.managed", "tables.managed_tables"),
    *("diffusion.method", "diffusion.options", "diffusion.denoiser_hidden", "diffusion.space", "diffusion.fill"),
    *("diffusion.mask_in_extractor", "diffusion.mask_in_denoiser", "diffusion.fields_in_denoiser"),
    "tables.numeric_bins",
)
"""Values on which a checkpoint's shapes or the order of the samples depend: they are a run's for good."""

PERMANENT = (InputError, TrainingError)
"""What would only come again if the workers were started again"""


def check(job: Job, statistics: Statistics, record: Mapping[str, Sequence[int]] | None) -> tuple[int, Shards]:
    """The steps of the whole run, and what it trains on: the files of the `record`, where there is one.

    Raises InputError for whatever the footers of the Parquet files show to be wrong.
    """
    schema = job.to_schema(statistics)
    worker = WorkerContext(0, _workers(job))
    for split in ("valid", "test"):
        evaluation_reader(job, schema, split, worker)
    shards = open_shards(job.location("train"), record)
    reader = TrainingReader(schema, shards, job.train.seed, job.train.batch_size, worker)
    return loop.total_steps(job, reader.steps_per_epoch), shards


def _workers(job: Job) -> int:
    """The most workers there may be; of a fixed number that one, whatever is wrong with it."""
    few, many = job.cluster.worker_range.min, job.cluster.worker_range.max
    if few == many:
        return many
    for count in range(many, few - 1, -1):
        if _is_possible(job, count):
            return count
    raise InputError(
        f"cluster.workers: no number from {few} to {many} divides data.lanes ({job.data.lanes}) and the sets of rows "
        "of managed tables"
    )


def _is_possible(job: Job, workers: int) -> bool:
    """Whether lanes and managed tables divide among so many workers."""
    tables = job.to_schema().tables
    managed = [tables[name].num_embeddings for name in job.tables.managed_tables]
    return job.data.lanes % workers == 0 and all(rows % (WAYS * workers) == 0 for rows in managed)


def resumed(run: Run, settings: tuple[str, ...]) -> Job:
    """The job that a run was started with, under new settings.

    Raises InputError where they change what is a run's for good, or leave nothing to do.
    """
    before, job = run.job(), run.job(settings)
    for path in FIXED:
        old, new = (to_jsonable_python(attrgetter(path)(one)) for one in (before, job))
        if found := difference(old, new, path):
            where, *values = found
            had, has = map(json.dumps, values)
            raise InputError(
                f"{where} is {has}, but {run.path} was started with {had}; to change it start a new run, with "
                f"--init-from {run.path} from the weights of this one"
            )
    checkpoints = Checkpoints(run.checkpoints(job))
    if steps := checkpoints.steps():
        standing = checkpoints.standing(steps[-1])
        whole, _ = check(job, run.statistics(), run.record())
        over = standing.step >= whole or standing.waited >= job.train.validation.patience
        if over and run.result():  # without a result it is the test that is still to be done
            raise InputError(
                f"{run.path}: has ended at step {standing.step}; to go on, raise train.epochs (or train.steps) "
                "or train.validation.patience with --set"
            )
    return job


def train(
    job: Job, statistics: Statistics, run: Run, console: Console, plan: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train in a run directory until the work is done or interrupted, from the newest checkpoint there; how it ended.

    `plan` is the document of a sharding plan; the tables are planned for these workers where it is None.

    Raises InputError where the input is wrong, and then leaves no new run directory behind.
    """
    steps, shards = check(job, statistics, run.record())
    few, many = job.cluster.worker_range.min, job.cluster.worker_range.max
    if plan and plan.get("world_size") not in range(few, many + 1):
        raise InputError(
            f"the plan is for {plan.get('world_size')} ranks; there are {few if few == many else f'{few} to {many}'}"
        )
    if added := added_files(job.location("train"), shards.record):
        console.print(unused(added), highlight=False, soft_wrap=True)
    start = None
    if job.train.init_from and not Checkpoints(run.checkpoints(job)).steps():
        start = start_from(open_run(Path(job.train.init_from)), job, job.to_schema(statistics))
        console.print(described_start(start))
    with _alone(run):
        run.write_inputs(job, statistics)
        run.write_record(shards.record)
        arguments = {
            "job": job.model_dump(mode="json"),
            "statistics": statistics.model_dump(mode="json"),
            "run": str(run.path.resolve()),
            "plan": plan,
            "start": start.document() if start else None,
        }
        return _train(job, run, steps, console, arguments)


def _train(job: Job, run: Run, steps: int, console: Console, arguments: Mapping[str, Any]) -> dict[str, Any]:
    is_new = not run.metrics.exists()
    run.forget_result()
    if job.cluster.worker_range.max > 1 and not torchrun_workers.rank_and_world_size():
        console.print("Starting workers under Ray")
    try:
        with followed(run.metrics, steps, console), _stops(run, console):
            launch(
                loop.work,
                arguments,
                job.cluster,
                run.ray,
                permanent_errors=PERMANENT,
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
def _alone(run: Run) -> Iterator[None]:
    """Hold the run directory; InputError where another training holds it, or where it cannot be made."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        file = run.lock.open("w")
    except OSError as error:
        raise InputError(f"{run.path}: cannot write there ({error.strerror}); choose another --run") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{run.path}: a training is running there") from None
        yield


@contextmanager
def _stops(run: Run, console: Console) -> Iterator[None]:
    """Turn a first SIGINT or SIGTERM into a request to stop with a checkpoint; a second one ends the command."""

    def request(number: int, frame: FrameType | None) -> None:
        if run.stop.exists():
            raise KeyboardInterrupt
        run.stop.touch()
        message = "Stopping after this step, with a checkpoint. Once more to stop at once, without one."
        console.print(message, soft_wrap=True)

    run.stop.unlink(missing_ok=True)
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        run.stop.unlink(missing_ok=True)
