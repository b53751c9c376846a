"""A run directory: the resolved job, what was learned from its data, metrics, checkpoints and how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from torch.utils.tensorboard import SummaryWriter

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.documents import read_yaml, validate, write_yaml
from asymdiffrec.datasets.files.locations import part_of
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.planner.plan_document import parse_plan
from asymdiffrec.trainer.job import Job, read_job


@dataclass(frozen=True)
class Run:
    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object a line: a logged step or an evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def stop(self) -> Path:
        """Training ends with a checkpoint soon after this file appears."""
        return self.path / "stop"

    @property
    def lock(self) -> Path:
        """Held by the command that trains"""
        return self.path / "lock"

    @property
    def spill(self) -> Path:
        return self.path / "spill"

    @property
    def ray(self) -> Path:
        """Ray's own files"""
        return self.path / "ray"

    def trace(self, rank: int) -> Path:
        """What `train.profile` leaves of a worker"""
        return self.path / "profile" / f"worker-{rank}.json"

    def checkpoints(self, job: Job) -> str:
        """The path or URI of the folder of its checkpoints."""
        if job.train.checkpoints.path is None:
            return str(self.path / "checkpoints")
        return part_of(job.train.checkpoints.path, self.path.resolve().name)

    def documents(self) -> dict[str, str]:
        """The texts that a checkpoint keeps beside the weights, by the names of their files."""
        return {name: (self.path / name).read_text() for name in ("job.yaml", "statistics.yaml")}

    def job(self, settings: tuple[str, ...] = ()) -> Job:
        return read_job(self.path / "job.yaml", settings)

    def statistics(self) -> Statistics:
        return validate(Statistics, read_yaml(str(self.path / "statistics.yaml")), str(self.path / "statistics.yaml"))

    def write_inputs(self, job: Job, statistics: Statistics) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_yaml(self.path / "job.yaml", job)
        write_yaml(self.path / "statistics.yaml", statistics)

    def record(self) -> dict[str, list[int]] | None:
        """The training files that the run reads, with the rows of their row groups; None before its first session."""
        path = self.path / "shards.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write_record(self, record: Mapping[str, Sequence[int]]) -> None:
        (self.path / "shards.json").write_text(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the records of later steps: the run goes on from `step`, and they belong to a future that was lost."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a full disk may have cut the last one
        kept = self.metrics.with_suffix(".partial")
        kept.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
        kept.rename(self.metrics)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        (self.path / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")

    def forget_result(self) -> None:
        (self.path / "result.json").unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        (self.path / "result.json").write_text(json.dumps(result, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        """How the run ended; None while it has not."""
        path = self.path / "result.json"
        return json.loads(path.read_text()) if path.exists() else None


def new_run(job: Job, path: Path | None) -> Run:
    """A run directory that is still empty: `path`, or runs/NAME/UTC-TIME."""
    path = path or Path("runs") / job.name / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; --run names a folder")
    if path.exists() and any(path.iterdir()):
        raise InputError(f"{path}: exists and is not empty; choose another --run, or add --resume to go on with it")
    return Run(path)


def latest_run(job: Job, path: Path | None) -> Run:
    """The run to go on with: `path`, or the newest of the job."""
    if path is None:
        runs = sorted(folder for folder in (Path("runs") / job.name).glob("*") if (folder / "job.yaml").exists())
        if not runs:
            raise InputError(f"runs/{job.name}: no run to resume")
        path = runs[-1]
    return open_run(path)


def open_run(path: Path) -> Run:
    if not (path / "job.yaml").exists():
        raise InputError(f"{path}: not a run directory (it has no job.yaml)")
    return Run(path)


def read_plan_file(path: Path) -> dict[str, Any]:
    """The document in a `plan.json`. Raises InputError where there is none."""
    try:
        return parse_plan(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class RunLog:
    """Appends records of the steps after `step` to `metrics.jsonl` and to TensorBoard's events.

    On workers that are not the writer nothing is written.
    """

    def __init__(self, run: Run, step: int, steps_per_epoch: int, is_writer: bool) -> None:
        self.is_writer, self._steps_per_epoch = is_writer, steps_per_epoch
        if is_writer:
            self._file = run.metrics.open("ab", buffering=0)
            self._unwritten = b""
            self._events = SummaryWriter(str(run.path / "events"), purge_step=step + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_writer:
            self._file.close()
            self._events.close()

    def note(self, step: int, **what: Any) -> None:
        """Write what is said once, after `step` steps."""
        self.write({"step": step, "epoch": max(0, step - 1) // self._steps_per_epoch, **what})

    def write(self, record: Mapping[str, Any]) -> None:
        if not self.is_writer:
            return
        self._unwritten += json.dumps(record).encode() + b"\n"
        self._unwritten = _appended(self._file, self._unwritten)
        if self._unwritten:  # TensorBoard's writer would not survive the full disk
            return
        ranks = {
            f"rank{rank}/{key}": value for rank, own in enumerate(record.get("ranks", ())) for key, value in own.items()
        }
        for key, value in {**record, **ranks}.items():
            if key != "step" and isinstance(value, int | float):
                self._events.add_scalar(key, value, record["step"])


def _appended(file: BinaryIO, lines: bytes) -> bytes:
    """Append to a file; what could not be, all or nothing: on a full disk lines wait until there is room again."""
    size = os.fstat(file.fileno()).st_size
    try:
        written = 0
        while written < len(lines):
            written += file.write(lines[written:])
    except OSError:
        os.ftruncate(file.fileno(), size)
        return lines
    return b""
