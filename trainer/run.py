"""A run directory: the resolved job, the statistics of its data, metrics, checkpoints and the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from torch.utils.tensorboard import SummaryWriter

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.documents import read_yaml, validate, write_yaml
from asymdiffrec.datasets.files.locations import join_location
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.planner.plan_document import parse_plan
from asymdiffrec.json_lines import read_json_lines
from asymdiffrec.trainer.job import Job, read_job


class RunOutcome(StrEnum):
    """Why a training ended; `outcome` in result.json."""

    FINISHED = "finished"
    """All steps are done"""
    STOPPED_EARLY = "stopped early"
    """Validation did not improve for `train.validation.patience` validations"""
    INTERRUPTED = "interrupted"
    """The user asked for a stop; --resume continues"""
    PREEMPTED = "preempted"
    """A host was about to be removed; the workers start again on other hosts, so result.json never has this value"""


@dataclass(frozen=True)
class Run:
    """A run directory. The constructor reads and creates nothing.

    >>> Run(Path("runs/clicks/1")).metrics_file
    PosixPath('runs/clicks/1/metrics.jsonl')
    """

    path: Path

    @property
    def metrics_file(self) -> Path:
        """The file with one JSON object per line: a logged step, an evaluation or a note."""
        return self.path / "metrics.jsonl"

    @property
    def stop_file(self) -> Path:
        """The stop file: if it exists, training stops with a checkpoint."""
        return self.path / "stop"

    @property
    def lock_file(self) -> Path:
        """The file that the command locks while it trains."""
        return self.path / "lock"

    @property
    def spill_folder(self) -> Path:
        """The folder for evaluation data that does not fit into memory."""
        return self.path / "spill"

    @property
    def ray_folder(self) -> Path:
        """The folder for Ray's files."""
        return self.path / "ray"

    @property
    def _result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def _training_files_file(self) -> Path:
        return self.path / "shards.json"

    def trace(self, rank: int) -> Path:
        """Return the path of a worker's trace. The file is written only if `train.profile` is not 0."""
        return self.path / "profile" / f"worker-{rank}.json"

    def checkpoints(self, job: Job) -> str:
        """Return the path or URI of the folder of the run's checkpoints."""
        if job.train.checkpoints.path is None:
            return str(self.path / "checkpoints")
        return join_location(job.train.checkpoints.path, self.path.resolve().name)

    def documents(self) -> dict[str, str]:
        """Return the texts that each checkpoint contains besides the tensors, by file name."""
        return {name: (self.path / name).read_text() for name in ("job.yaml", "statistics.yaml")}

    def job(self, overrides: tuple[str, ...] = ()) -> Job:
        """Return the job of the run, with `PATH=VALUE` overrides applied."""
        return read_job(self.path / "job.yaml", overrides)

    def statistics(self) -> Statistics:
        """Return the statistics of the training rows that the run was started with."""
        path = str(self.path / "statistics.yaml")
        return validate(Statistics, read_yaml(path), path)

    def write_inputs(self, job: Job, statistics: Statistics) -> None:
        """Write job and statistics, and create the run directory if it does not exist."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_yaml(self.path / "job.yaml", job)
        write_yaml(self.path / "statistics.yaml", statistics)

    def training_files(self) -> dict[str, list[int]] | None:
        """Return {file: rows of each row group} of the training files, or None before the first session of the run.

        All sessions of a run read the same files, even if files are added to the data between two sessions.
        """
        file = self._training_files_file
        return json.loads(file.read_text()) if file.exists() else None

    def write_training_files(self, files: Mapping[str, Sequence[int]]) -> None:
        """Write the training files of the run as {file: rows of each row group}."""
        self._training_files_file.write_text(json.dumps(files) + "\n")

    def drop_records_after(self, step: int) -> None:
        """Delete the records of steps after `step`: training continues from `step` and repeats the later steps."""
        records = [record for record in read_json_lines(self.metrics_file) if record["step"] <= step]
        partial = self.metrics_file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in records))
        partial.rename(self.metrics_file)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the document of the sharding plan to plan.json."""
        (self.path / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")

    def remove_result(self) -> None:
        """Delete the result of an earlier session."""
        self._result_file.unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result of the run: outcome, progress, and planned and measured resources."""
        self._result_file.write_text(json.dumps(result, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        """Return the result of the run, or None if the run has not ended."""
        return json.loads(self._result_file.read_text()) if self._result_file.exists() else None


def new_run(job: Job, path: Path | None) -> Run:
    """Return an empty run directory: `path`, or runs/NAME/UTC-TIME. Raises InputError if `path` is not empty."""
    path = path or Path("runs") / job.name / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; --run must be a folder")
    if path.exists() and any(path.iterdir()):
        raise InputError(f"{path}: exists and is not empty; choose another --run, or add --resume to continue it")
    return Run(path)


def latest_run(job: Job, path: Path | None) -> Run:
    """Return the run directory at `path`, or the job's newest run if `path` is None.

    Raises InputError if the job has no run, or `path` is not a run directory.
    """
    if path is None:
        runs = sorted(folder for folder in (Path("runs") / job.name).glob("*") if (folder / "job.yaml").exists())
        if not runs:
            raise InputError(f"runs/{job.name}: no run to resume")
        path = runs[-1]
    return open_run(path)


def open_run(path: Path) -> Run:
    """Return the run directory at a path. Raises InputError if the path is not a run directory."""
    if not (path / "job.yaml").exists():
        raise InputError(f"{path}: not a run directory (it has no job.yaml)")
    return Run(path)


def read_plan_file(path: Path) -> dict[str, Any]:
    """Return the document of a plan.json. Raises InputError if it cannot be read or is not a plan."""
    try:
        return parse_plan(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class RunLog:
    """The log of a run: metrics.jsonl and TensorBoard's events.

    Only the worker whose `is_writer` is True writes. `step` is the step that the session starts from: TensorBoard hides
    the events that an earlier session wrote for later steps.

        with RunLog(run, step=0, steps_per_epoch=100, is_writer=rank == 0) as log:
            log.write({"step": 50, "epoch": 0, "loss": 0.69})
            log.note(50, note="training continues")
    """

    def __init__(self, run: Run, step: int, steps_per_epoch: int, is_writer: bool) -> None:
        self.is_writer, self._steps_per_epoch = is_writer, steps_per_epoch
        if is_writer:
            self._file = run.metrics_file.open("ab", buffering=0)
            self._unwritten = b""
            self._events = SummaryWriter(str(run.path / "events"), purge_step=step + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_writer:
            self._file.close()
            self._events.close()

    def note(self, step: int, **values: Any) -> None:
        """Write a record about something that happened after `step` steps."""
        self.write({"step": step, "epoch": max(0, step - 1) // self._steps_per_epoch, **values})

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record that contains `step`. If the disk is full, keep the record in memory until the next call."""
        if not self.is_writer:
            return
        self._unwritten += json.dumps(record).encode() + b"\n"
        self._unwritten = _append(self._file, self._unwritten)
        if self._unwritten:  # TensorBoard's writer does not survive a full disk
            return
        ranks = {
            f"rank{rank}/{key}": value
            for rank, usage in enumerate(record.get("ranks", ()))
            for key, value in usage.items()
        }
        for key, value in {**record, **ranks}.items():
            if key != "step" and isinstance(value, int | float):
                self._events.add_scalar(key, value, record["step"])


def _append(file: BinaryIO, lines: bytes) -> bytes:
    """Append all lines or, on a full disk, none of them; return the lines that were not written."""
    size = os.fstat(file.fileno()).st_size
    try:
        written = 0
        while written < len(lines):
            written += file.write(lines[written:])
    except OSError:
        os.ftruncate(file.fileno(), size)
        return lines
    return b""
