"""Training: what every worker does from the first step to the test metrics of the best one."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.datasets.batch import Batch
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.reader import EvaluationReader, TrainingReader, Worker
from asymdiffrec.datasets.schema import Learned, Schema
from asymdiffrec.datasets.shards import added_files, open_shards
from asymdiffrec.embeddings.managed.lookup import take_counts
from asymdiffrec.embeddings.quiet import quiet_torchrec
from asymdiffrec.trainer import checkpoint
from asymdiffrec.trainer.build import (
    Pipeline,
    Trainee,
    build,
    detach,
    detached,
    pipeline,
    worker_device,
    write_plan,
)
from asymdiffrec.trainer.checkpoint import Progress
from asymdiffrec.trainer.evaluate import evaluate
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.measured import Gauge
from asymdiffrec.trainer.run import Run, RunLog, remove_checkpoints


class TrainingError(RuntimeError):
    """Training cannot go on."""


def work(arguments: Mapping[str, Any]) -> None:
    """Train one job in its run directory; runs on every worker within a process group of all of them.

    `arguments` are `job`, `learned` and `plan` (or None) as documents, `run`, the directory, and `resume`.
    """
    quiet_torchrec()
    job, learned = Job.model_validate(arguments["job"]), Learned.model_validate(arguments["learned"])
    run = Run(Path(arguments["run"]))
    schema = job.to_schema(learned)
    worker = Worker(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))
    shards = open_shards(job.location("train"), run.record())
    reader = TrainingReader(schema, shards, job.train.seed, job.train.batch_size, worker)
    gauge = Gauge(device := worker_device())
    trainee = build(job, schema, device, arguments["plan"])
    progress = Progress()
    if arguments["resume"] and run.steps():
        progress = checkpoint.load(run.checkpoint(run.steps()[-1]), trainee)
    training = Training(job, run, schema, worker, reader, trainee)
    if worker.rank == 0:
        write_plan(run.path / "plan.json", trainee)
    log = RunLog(run, progress.step) if worker.rank == 0 else None
    try:
        progress, state = training.fit(progress, log, gauge)
        measured = gauge.compared(trainee.plan)
        if state != "interrupted":
            training.test(progress, log)
        if worker.rank == 0:
            run.write_result({"state": state, **asdict(progress), "measured": measured})
    finally:
        if log:
            log.close()


@dataclass(frozen=True)
class Training:
    job: Job
    run: Run
    schema: Schema
    worker: Worker
    reader: TrainingReader
    trainee: Trainee

    @property
    def steps(self) -> int:
        return total_steps(self.job, self.reader.steps_per_epoch)

    def fit(self, progress: Progress, log: RunLog | None, gauge: Gauge) -> tuple[Progress, str]:
        """Train to the end, to the end of validation's patience, or to a request to stop; its last step is saved."""
        train = pipeline(self.trainee)
        outcome = self._steps(train, progress, log, gauge)
        detach(train)
        return outcome

    def _steps(self, train: Pipeline, progress: Progress, log: RunLog | None, gauge: Gauge) -> tuple[Progress, str]:
        settings, steps = self.job.train, self.steps
        validate_every = settings.validation.every or self.reader.steps_per_epoch
        position, on_gpu = self.reader.position(progress.step), self.trainee.device.type == "cuda"
        meter = Meter(self.reader, self.trainee.device, progress.step, steps)
        gauge.restart_clock()
        batches = meter.waiting(self.reader.batches(position, pinned=on_gpu))
        known = self.unused_files() if log else set()
        while progress.step < steps:
            meter.add(train.progress(batches))
            progress, stop = replace(progress, step=progress.step + 1), False
            last = progress.step == steps
            if progress.step % settings.log_every == 0 or last:
                record, stop = meter.record(progress.step, self.run.stop.exists())
                gauge.seconds.append(self.reader.batch_size / record["samples_per_second"])
                record |= take_counts(self.trainee.model)
                if log:
                    log.write(record)
            if log and progress.step % self.reader.steps_per_epoch == 0:
                known = self.tell_added_files(progress.step, known, log)
            if progress.step % validate_every == 0 or last:
                with meter.paused(), detached(train):
                    progress = self.validate(progress, log)
                    self.save(progress)
                if progress.waited >= settings.validation.patience and not last:
                    return progress, "stopped early"
            elif stop:
                self.save(progress)
            if stop and not last:
                return progress, "interrupted"
        return progress, "finished"

    def unused_files(self) -> set[str]:
        """Training files that were not there when the run was started."""
        return set(added_files(self.job.location("train"), self.reader.shards.record))

    def tell_added_files(self, step: int, known: set[str], log: RunLog) -> set[str]:
        """Record the added files that are not known yet; returns all."""
        found = self.unused_files()
        if new := sorted(found - known):
            log.write({"step": step, "epoch": self.reader.position(step - 1).epoch, "files_added": new})
        return found | known

    def validate(self, progress: Progress, log: RunLog | None) -> Progress:
        """Evaluate the validation split at each share of missing fields; the metric's mean tells the best step."""
        validation = self.job.train.validation
        values = [
            self.evaluate("valid", missing, progress.step, log)[validation.metric] for missing in validation.missing
        ]
        if None in values:
            raise TrainingError(
                f"{validation.metric} of the validation split is undefined (one class only, or no user with both); "
                "choose another train.validation.metric or another split"
            )
        return progress.validated(sum(values) / len(values), higher_is_better=validation.metric != "log_loss")

    def test(self, progress: Progress, log: RunLog | None) -> None:
        """Evaluate the test split at the best step; leaves the model there."""
        checkpoint.load_weights(self.run.checkpoint(progress.best_step), self.trainee)
        self.evaluate("test", 0.0, progress.best_step, log)

    def evaluate(self, split: str, missing: float, step: int, log: RunLog | None) -> dict[str, Any]:
        settings = self.job.train
        shards = open_shards(self.job.location(split))
        reader = EvaluationReader(self.schema, shards, evaluation_batch(settings.batch_size), self.worker)
        spill = self.run.path / "spill"
        try:
            metrics = evaluate(self.trainee.recommender, reader, missing, spill, settings.metric_rows)
        except InputError:
            raise
        except ValueError as error:
            raise TrainingError(f"at step {step}: {error}") from error
        if log:
            named = {f"{split}/{key}": value for key, value in metrics.items() if key != "missing"}
            epoch = (step - 1) // self.reader.steps_per_epoch
            log.write({"step": step, "epoch": epoch, "missing": missing, **named})
        return metrics

    def save(self, progress: Progress) -> None:
        checkpoint.save(self.run.checkpoint(progress.step), self.trainee, progress)
        if self.worker.rank == 0:
            newest = self.run.steps()[-self.job.train.keep :]
            remove_checkpoints(self.run, {*newest, progress.best_step})


def total_steps(job: Job, steps_per_epoch: int) -> int:
    """Steps of a whole run, when validation does not end it earlier."""
    steps = job.train.epochs * steps_per_epoch
    return min(steps, job.train.steps) if job.train.steps else steps


def evaluation_batch(batch_size: int) -> int:
    """Samples of an evaluation step: no gradients are kept, so more fit; a small training batch would only be slow."""
    return max(batch_size, 8192)


class Meter:
    """Means of the losses between two log lines, over all workers, the rate, and the share of time that data took."""

    def __init__(self, reader: TrainingReader, device: torch.device, step: int, steps: int) -> None:
        self.reader, self.device, self.steps = reader, device, steps
        self._restart(step)

    def _restart(self, step: int) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.waited = 0.0
        self.step, self.since = step, time.perf_counter()

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time that each lets wait for it is counted."""
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - start
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that the rate does not count."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().clone()
        self.count += 1

    def record(self, step: int, stop: bool) -> tuple[dict[str, Any], bool]:
        """The record of the interval that ends at `step`, and whether any worker wants to stop, in one collective.

        Raises TrainingError where a loss is not finite.
        """
        names = list(self.sums)
        waited = self.waited / (time.perf_counter() - self.since)
        shared = torch.tensor([float(stop), waited], device=self.device)
        values = torch.cat([torch.stack(list(self.sums.values())), shared])
        dist.all_reduce(values)
        means = (values[:-2] / (self.count * dist.get_world_size())).tolist()
        stop, waited = bool(values[-2] > 0), float(values[-1]) / dist.get_world_size()
        losses = dict(zip(names, means, strict=True))
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if wrong:
            raise TrainingError(
                f"{wrong[-1]} is {losses[wrong[-1]]} between steps {self.step + 1} and {step}; the last checkpoint is "
                "unharmed. Lower train.learning_rate or tables.optimizer.learning_rate"
            )
        seconds = (time.perf_counter() - self.since) / self.count
        position = self.reader.position(step - 1)
        record = {
            "step": step,
            "epoch": position.epoch,
            "samples": step * self.reader.batch_size,
            "samples_per_second": self.reader.batch_size / seconds,
            "data_wait": waited,
            "seconds_left": seconds * (self.steps - step),
            **losses,
        }
        self._restart(step)
        return record, stop
