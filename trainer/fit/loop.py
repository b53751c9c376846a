"""Training: what every worker does from the first step to the test metrics of the best one."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from asymdiffrec.cluster.context import ClusterContext
from asymdiffrec.cluster.errors import HostLeavingError
from asymdiffrec.datasets.reader import TrainingReader, WorkerContext
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import added_files, open_shards
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.managed.lookup import take_counts
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.build import TrainState, build, worker_device
from asymdiffrec.trainer.checkpoints.init_from import Start, take
from asymdiffrec.trainer.checkpoints.state import Standing
from asymdiffrec.trainer.checkpoints.store import Checkpoints, Saver
from asymdiffrec.trainer.errors import CheckpointError, TrainingError
from asymdiffrec.trainer.evaluation.evaluate import evaluate, evaluation_reader
from asymdiffrec.trainer.evaluation.scenarios import drop_at_random
from asymdiffrec.trainer.fit.consensus import LossGuard
from asymdiffrec.trainer.fit.meter import Meter
from asymdiffrec.trainer.fit.pipeline import Pipeline, detach, detached, pipeline, seed_step
from asymdiffrec.trainer.fit.plan_check import Gauge
from asymdiffrec.trainer.fit.profiling import Trace, traced
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.metrics import METRICS
from asymdiffrec.trainer.run import Run, RunLog

LOOKS = 0.5
"""Seconds between two looks at whether somebody asked for a stop"""


def work(arguments: Mapping[str, Any], context: ClusterContext) -> None:
    """Train one job in its run directory; runs on every worker within a process group of all of them.

    Goes on from the newest good checkpoint of the run, whatever number of workers wrote it: after a failure it is just
    called again. `arguments` are `job`, `learned`, and `plan` and `start` (see `Start`) or None, as documents, and
    `run`, the directory.
    When a host is about to be taken away, a checkpoint is written and HostLeavingError is raised on all workers.
    """
    silence_torchrec_warnings()
    job, statistics = Job.model_validate(arguments["job"]), Statistics.model_validate(arguments["statistics"])
    run = Run(Path(arguments["run"]))
    schema = job.to_schema(statistics)
    worker = WorkerContext(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))
    shards = open_shards(job.location("train"), run.record())
    reader = TrainingReader(schema, shards, job.train.seed, job.train.batch_size, worker)
    checkpoints, notes = Checkpoints(run.checkpoints(job)), list[str]()
    step = checkpoints.newest_good(notes.append)
    gauge = Gauge(device := worker_device())
    train_state = build(job, schema, device, _plan_for(worker.world_size, arguments["plan"], notes))
    if step is None and arguments["start"]:
        take(Start.of(arguments["start"]), train_state)
    standing = Standing() if step is None else checkpoints.load(step, train_state)
    if worker.rank == 0:
        run.forget_after(standing.step)
        run.write_plan(train_state.plan)
    with RunLog(run, standing.step, reader.steps_per_epoch, is_writer=worker.rank == 0) as log:
        log.note(standing.step, workers=worker.world_size, hosts=context.ranks_by_host)
        for note in notes:
            log.note(standing.step, note=note)
        training = Training(job, run, schema, worker, reader, train_state, checkpoints, log, context.publish)
        standing, state = training.fit(standing, context.is_leaving, gauge)
        measured = gauge.compared(train_state.plan)
        if state == "leaving":
            raise HostLeavingError(f"a host is being taken away; the checkpoint of step {standing.step} is written")
        if state != "interrupted":
            training.test(standing)
        if worker.rank == 0:
            run.write_result({"state": state, **standing.summary(), "measured": measured})


def _plan_for(workers: int, plan: Mapping[str, Any] | None, notes: list[str]) -> Mapping[str, Any] | None:
    """The plan that was asked for, unless the workers have become more or fewer since."""
    if plan and plan.get("world_size") != workers:
        notes.append(f"the plan given is for {plan.get('world_size')} workers; {workers} have one of their own")
        return None
    return plan


@dataclass(frozen=True)
class Training:
    """One worker's part of it."""

    job: Job
    run: Run
    schema: Schema
    worker: WorkerContext
    reader: TrainingReader
    train_state: TrainState
    checkpoints: Checkpoints
    log: RunLog
    publish: Callable[[Mapping[str, Any]], None]

    @property
    def steps(self) -> int:
        return total_steps(self.job, self.reader.steps_per_epoch)

    def fit(self, standing: Standing, leaving: Callable[[], bool], gauge: Gauge) -> tuple[Standing, str]:
        """Train to the end, to the end of validation's patience, or to a request to stop; its last step is saved.

        Raises CheckpointError where that step cannot be saved; one before it that cannot be is a note in the log.
        """
        settings = self.job.train
        meter = Meter(self.reader, self.train_state.device, self.steps, standing)
        guard = LossGuard(
            self.train_state.device, settings, self.reader, _rarely(self.run.stop.exists), _rarely(leaving)
        )
        train = pipeline(self.train_state, guard.may_learn)
        gauge.restart_clock()
        with (
            Saver(self.checkpoints, self.train_state, self.run.documents(), settings.checkpoints, standing) as saver,
            traced(settings.profile, self.run.trace(self.worker.rank)) as trace,
        ):
            standing, state = self._steps(standing, train, meter, guard, saver, trace)
            detach(train)
            self.settle(saver, standing)
            if saver.saved.step != standing.step:
                raise CheckpointError(
                    f"step {standing.step}, the last one, could not be saved: {saver.failure}; --resume goes on from "
                    f"step {saver.saved.step}"
                )
        gauge.step_seconds = meter.step_seconds
        return saver.saved, state

    def _steps(
        self, standing: Standing, train: Pipeline, meter: Meter, guard: LossGuard, saver: Saver, trace: Trace
    ) -> tuple[Standing, str]:
        settings, steps = self.job.train, self.steps
        validate_every = settings.validation.every or self.reader.steps_per_epoch
        position, on_gpu = self.reader.position(standing.step), self.train_state.device.type == "cuda"
        batches = meter.waiting(self.reader.batches(position, pinned=on_gpu))
        known = self.unused_files()
        while standing.step < steps:
            guard.begin(standing.step)
            seed_step(settings.seed, standing.step, self.worker.rank)
            self.train_state.update.begin(standing.step, steps)
            losses = train.progress(batches)
            trace.step()
            agreed = guard.agreed
            if agreed.is_lost:
                self.log.note(standing.step + 1, **guard.lost)
                meter.skip()
            else:
                meter.add(losses)
            standing = replace(standing, step=standing.step + 1)
            last = standing.step == steps
            if standing.step % settings.log_every == 0 or last:
                record = meter.record(standing.step, guard.take_waited()) | take_counts(self.train_state.model)
                self.log.write(record)
                self.publish(record)
            if standing.step % self.reader.steps_per_epoch == 0:
                known = self.tell_added_files(standing.step, known)
            validates = standing.step % validate_every == 0 or last
            if validates:
                with meter.paused(), detached(train):
                    standing = self.validate(standing)
            if validates or agreed.stop or agreed.leave or saver.is_due(standing.step, agreed.save):
                with meter.paused():
                    standing = self.save(saver, replace(standing, **meter.state()))
                guard.saved()
            if last:
                break
            if validates and standing.waited >= settings.validation.patience:
                return standing, "stopped early"
            if agreed.stop or agreed.leave:
                return standing, "interrupted" if agreed.stop else "leaving"
        return standing, "finished"

    def save(self, saver: Saver, standing: Standing) -> Standing:
        """Begin to save, once the save before has ended; the standing knows of no best step that could not be saved."""
        standing = self.settle(saver, standing)
        saver.save(standing)
        return standing

    def settle(self, saver: Saver, standing: Standing) -> Standing:
        """Wait for the save that is going on, and write down where it failed."""
        failed = saver.finish()
        if failed is None:
            return standing
        self.log.note(failed.step, note=f"{saver.failure}; training goes on, with step {saver.saved.step} saved")
        if standing.best_step == failed.step:
            return replace(standing, best_step=saver.saved.best_step, best_value=saver.saved.best_value)
        return standing

    def unused_files(self) -> set[str]:
        """Training files that were not there when the run was started; none for workers that write no log."""
        if not self.log.is_writer:
            return set()
        return set(added_files(self.job.location("train"), self.reader.shards.record))

    def tell_added_files(self, step: int, known: set[str]) -> set[str]:
        """Record the added files that are not known yet; returns all."""
        found = self.unused_files()
        if new := sorted(found - known):
            self.log.note(step, files_added=new)
        return found | known

    def validate(self, standing: Standing) -> Standing:
        """Evaluate the validation split at each share of missing fields; the metric's mean tells the best step."""
        validation = self.job.train.validation
        results = self.evaluate("valid", validation.missing, standing.step)
        values = [result[validation.metric] for result in results]
        if None in values:
            raise TrainingError(
                f"{validation.metric} of the validation split is undefined (one class only, or no user with both); "
                "choose another train.validation.metric or another split"
            )
        return standing.validated(
            sum(values) / len(values), higher_is_better=METRICS[validation.metric].better == "higher"
        )

    def test(self, standing: Standing) -> None:
        """Evaluate the test split at the best step; leaves the model there."""
        if damage := self.checkpoints.damage(standing.best_step):
            raise CheckpointError(f"{damage}; it was the best step, and is not tested")
        self.checkpoints.load_weights(standing.best_step, self.train_state)
        self.evaluate("test", [0.0], standing.best_step)

    def evaluate(self, split: str, shares: Sequence[float], step: int) -> list[dict[str, Any]]:
        """The metrics of a split for each share of missing fields."""
        settings = self.job.train
        reader = evaluation_reader(self.job, self.schema, split, self.worker)
        scenarios = [drop_at_random(share, self.schema) for share in shares]
        try:
            results = evaluate(self.train_state.recommender, reader, scenarios, self.run.spill, settings.metric_rows)
        except TrainingError as error:
            raise TrainingError(f"at step {step}: {error}") from error
        for result in results:
            named = {f"{split}/{key}": value for key, value in result.items() if key not in ("missing", "scenario")}
            self.log.note(step, missing=result["missing"], **named)
        return results


def total_steps(job: Job, steps_per_epoch: int) -> int:
    """Steps of a whole run, when validation does not end it earlier."""
    steps = job.train.epochs * steps_per_epoch
    return min(steps, job.train.steps) if job.train.steps else steps


def _rarely(ask: Callable[[], bool]) -> Callable[[], bool]:
    """`ask`, at most every LOOKS seconds; a yes stays one."""
    answer, since = False, -math.inf

    def asked() -> bool:
        nonlocal answer, since
        if not answer and time.monotonic() - since >= LOOKS:
            answer, since = ask(), time.monotonic()
        return answer

    return asked
