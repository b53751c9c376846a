"""The tasks of a comparison: one variant with one seed, in a separate folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import replace_file
from asymdiffrec.datasets.files.documents import first_difference
from asymdiffrec.datasets.prepare.time_periods import write_periods
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.trainer.evaluation.scenarios import Scenario, ScenarioOptions
from asymdiffrec.trainer.experiments.variants import Variant
from asymdiffrec.trainer.fit.train import check_job
from asymdiffrec.trainer.job import Job, read_job, read_statistics

SPLIT = "test"
"""The split on which variants are compared"""


@dataclass(frozen=True)
class Task:
    """One variant with one seed. Tasks can be pickled, because they may run under Ray."""

    variant: Variant
    seed: int
    job_file: Path
    overrides: tuple[str, ...]
    """Overrides PATH=VALUE of the job file, for all variants"""
    folder: Path
    """Run directory, scores and error of the task"""
    options: ScenarioOptions
    period: int | None = None
    """Number of the period, from 1; None without --progressive"""

    @property
    def name(self) -> str:
        """Name for people: variant, seed and period."""
        period = f", period {self.period}" if self.period else ""
        return f"{self.variant.name}, seed {self.seed}{period}"

    @property
    def divergence_file(self) -> Path:
        """The file that says how the training diverged, and which model is evaluated instead."""
        return self.folder / "diverged.txt"

    @property
    def failure_file(self) -> Path:
        """The file with the traceback of the error that ended the task."""
        return self.folder / "failed.txt"

    def read_job(self) -> Job:
        """Return the job of this variant and seed. Raises InputError if the overrides do not fit."""
        return read_job(self.job_file, [*self.overrides, *self.variant.overrides, f"train.seed={self.seed}"])

    def scenarios(self, job: Job) -> list[Scenario]:
        """Return the scenarios of the comparison. Raises InputError if the data have no such field."""
        return self.options.scenarios(job.to_schema(read_statistics(job)))


def make_tasks(
    job_file: Path,
    variants: Sequence[Variant],
    seeds: int,
    overrides: Sequence[str],
    folder: Path,
    options: ScenarioOptions,
) -> list[Task]:
    """Return a task for each seed and variant, all variants of a seed before the next seed.

    Raises InputError for mistakes that can be found before training: a wrong override or scenario, data that do not fit
    the job, or a folder that was made with another job.
    """
    tasks = [
        Task(variant, seed, job_file, tuple(overrides), folder / variant.name / f"seed-{seed}", options)
        for seed in range(seeds)
        for variant in variants
    ]
    for task in tasks:
        job = task.read_job()
        task.scenarios(job)
        if task.seed == 0 and task.variant.rival is None:
            check_job(job, read_statistics(job), None)
        require_same_job(task.folder, job)
    return tasks


def make_tasks_by_period(
    job_file: Path,
    variants: Sequence[Variant],
    seeds: int,
    overrides: Sequence[str],
    folder: Path,
    options: ScenarioOptions,
    periods: int,
) -> list[Task]:
    """Return the tasks of each period, see `make_tasks`.

    A task trains on all rows before its period and is evaluated on the rows of the period. Periods are consecutive in
    the order of data.time. Raises InputError also if the job has no data.time.
    """
    job = read_job(job_file, overrides)
    if job.data.time is None:
        raise InputError(
            f"{job_file}: data.time is not set; --progressive needs it: set data.time to the column with the time of "
            "each row"
        )
    sources = [open_shards(job.location(split)) for split in ("train", "valid", SPLIT)]
    document = job.model_dump(mode="json", exclude_unset=True)
    period_folder = folder / f"progressive-{periods}"
    require_same_job(period_folder, job)
    period_jobs = write_periods(period_folder / "periods", sources, document, job.data.time, periods)
    return [
        replace(task, period=period)
        for period, period_job in enumerate(period_jobs, start=1)
        for task in make_tasks(period_job, variants, seeds, (), period_folder / f"period-{period}", options)
    ]


def require_same_job(folder: Path, job: Job) -> None:
    """Record in `folder` the job that it is made with. Raises InputError if the folder was made with another job."""
    file = folder / "made_with.json"
    document = job.model_dump(mode="json", exclude={"cluster"})
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps(document).encode())
    elif changed := first_difference(json.loads(file.read_text()), document):
        path, before, now = changed
        raise InputError(
            f"{folder}: was made with {path.removeprefix('.')} {json.dumps(before)}, not {json.dumps(now)}; choose "
            "another --out"
        )
