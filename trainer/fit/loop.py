"""The training loop: steps, validations and checkpoints, from the first step of a session to its last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from asymdiffrec.datasets.reader import TrainingReader, WorkerContext
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import added_files
from asymdiffrec.embeddings.managed.lookup import take_counts
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.checkpoints.saver import Saver
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError, TrainingError
from asymdiffrec.trainer.evaluation.evaluate import evaluate, evaluation_reader
from asymdiffrec.trainer.evaluation.scenarios import drop_at_random
from asymdiffrec.trainer.fit.consensus import StepConsensus
from asymdiffrec.trainer.fit.meter import Meter
from asymdiffrec.trainer.fit.pipeline import Pipeline, build_pipeline, detach, detached, seed_step
from asymdiffrec.trainer.fit.plan_check import ResourceUsage
from asymdiffrec.trainer.fit.profiling import Profiler, profile_steps
from asymdiffrec.trainer.job import Job, total_steps
from asymdiffrec.trainer.metrics import METRICS
from asymdiffrec.trainer.run import Run, RunLog, RunOutcome
from asymdiffrec.trainer.train_state import TrainState

MIN_POLL_SECONDS = 0.5
"""Minimum time between two checks whether training should stop; a check costs a system call"""


@dataclass(frozen=True)
class TrainingLoop:
    """The training loop of one rank."""

    job: Job
    run: Run
    schema: Schema
    context: WorkerContext
    reader: TrainingReader
    train_state: TrainState
    checkpoints: Checkpoints
    log: RunLog
    publish: Callable[[Mapping[str, Any]], None]
    """Called with the record of each logged step; publishes metrics outside the run directory"""

    @property
    def steps(self) -> int:
        """Number of steps of the whole run, unless validation stops it early."""
        return total_steps(self.job, self.reader.steps_per_epoch)

    def fit(
        self, progress: Progress, is_leaving: Callable[[], bool], usage: ResourceUsage
    ) -> tuple[Progress, RunOutcome]:
        """Train until the run ends, stops early, is asked to stop, or a host is about to leave; save the last step.

        Returns the saved progress, and the reason why training ended. Raises CheckpointError if the last step cannot be
        saved. If saving an earlier step fails, training continues and the log gets a note.
        """
        settings = self.job.train
        meter = Meter(self.reader, self.train_state.device, self.steps, progress)
        consensus = StepConsensus(
            self.train_state.device, settings, self.reader, _polled(self.run.stop_file.exists), _polled(is_leaving)
        )
        pipeline = build_pipeline(self.train_state, consensus.should_update)
        usage.restart_clock()
        with (
            Saver(self.checkpoints, self.train_state, self.run.documents(), settings.checkpoints, progress) as saver,
            profile_steps(settings.profile, self.run.trace(self.context.rank)) as profiler,
        ):
            progress, outcome = self._steps(progress, pipeline, meter, consensus, saver, profiler)
            detach(pipeline)
            self._finish_save(saver, progress)
            if saver.saved.step != progress.step:
                raise CheckpointError(
                    f"the checkpoint of the last step ({progress.step}) could not be saved: {saver.failure}; --resume "
                    f"continues from step {saver.saved.step}"
                )
        usage.step_seconds = meter.step_seconds
        return saver.saved, outcome

    def _steps(
        self,
        progress: Progress,
        pipeline: Pipeline,
        meter: Meter,
        consensus: StepConsensus,
        saver: Saver,
        profiler: Profiler,
    ) -> tuple[Progress, RunOutcome]:
        settings, steps = self.job.train, self.steps
        validate_every = settings.validation.every or self.reader.steps_per_epoch
        position, on_gpu = self.reader.position(progress.step), self.train_state.device.type == "cuda"
        batches = meter.timed(self.reader.batches(position, pinned=on_gpu))
        reported_files = self._unused_files()
        while progress.step < steps:
            consensus.begin(progress.step)
            seed_step(settings.seed, progress.step, self.context.rank)
            self.train_state.optimizer.begin(progress.step, steps)
            losses = pipeline.progress(batches)
            profiler.step()
            decision = consensus.decision
            if decision.is_bad:
                self.log.note(progress.step + 1, **consensus.bad_step)
                meter.skip()
            else:
                meter.add(losses)
            progress = replace(progress, step=progress.step + 1)
            is_last = progress.step == steps
            if progress.step % settings.log_every == 0 or is_last:
                record = meter.record(progress.step, consensus.take_waited()) | take_counts(self.train_state.model)
                self.log.write(record)
                self.publish(record)
            if progress.step % self.reader.steps_per_epoch == 0:
                reported_files = self._report_unused_files(progress.step, reported_files)
            validates = progress.step % validate_every == 0 or is_last
            if validates:
                with meter.paused(), detached(pipeline):
                    progress = self.validate(progress)
            ends = decision.stop or decision.leave
            if validates or ends or saver.is_due(progress.step, decision.save):
                with meter.paused():
                    progress = self.save(saver, replace(progress, **meter.interval()))
                consensus.saved()
            if is_last:
                break
            if validates and progress.validations_since_best >= settings.validation.patience:
                return progress, RunOutcome.STOPPED_EARLY
            if ends:
                return progress, RunOutcome.INTERRUPTED if decision.stop else RunOutcome.PREEMPTED
        return progress, RunOutcome.FINISHED

    def save(self, saver: Saver, progress: Progress) -> Progress:
        """Wait until the previous save has finished, start an asynchronous save, and return the progress that it saves.

        If the previous save failed, its step is no longer recorded as the best step.
        """
        progress = self._finish_save(saver, progress)
        saver.save(progress)
        return progress

    def _finish_save(self, saver: Saver, progress: Progress) -> Progress:
        """Wait for the running save. If it failed, log the error and do not count its step as the best."""
        failed = saver.finish()
        if failed is None:
            return progress
        self.log.note(
            failed.step, note=f"{saver.failure}; training continues; the last saved step is {saver.saved.step}"
        )
        if progress.best_step == failed.step:
            return replace(progress, best_step=saver.saved.best_step, best_value=saver.saved.best_value)
        return progress

    def _unused_files(self) -> set[str]:
        """Return the training files that were added after the run started; an empty set on ranks that write no log."""
        if not self.log.is_writer:
            return set()
        return set(added_files(self.job.location("train"), self.reader.shards.record))

    def _report_unused_files(self, step: int, reported: set[str]) -> set[str]:
        """Log the added files that are not yet `reported`, and return all of them."""
        files = self._unused_files()
        if new := sorted(files - reported):
            self.log.note(step, files_added=new)
        return files | reported

    def validate(self, progress: Progress) -> Progress:
        """Evaluate the validation split at each share of missing fields, and return the updated progress.

        The metric, averaged over the shares, decides the best step. Raises TrainingError if the metric is undefined.
        """
        validation = self.job.train.validation
        results = self.evaluate("valid", validation.missing, progress.step)
        values = [result[validation.metric] for result in results]
        if None in values:
            raise TrainingError(
                f"{validation.metric} of the validation split is undefined (all labels are equal, or for gauc "
                "no user has samples of both classes); choose another train.validation.metric or another split"
            )
        higher_is_better = METRICS[validation.metric].better == "higher"
        return progress.validated(sum(values) / len(values), higher_is_better)

    def test(self, progress: Progress) -> None:
        """Load the best step and evaluate the test split. Raises CheckpointError if its checkpoint is damaged."""
        if damage := self.checkpoints.damage(progress.best_step):
            raise CheckpointError(
                f"{damage}; this is the checkpoint of the best step, so the test split was not evaluated"
            )
        self.checkpoints.load_weights(progress.best_step, self.train_state)
        self.evaluate("test", [0.0], progress.best_step)

    def evaluate(self, split: str, shares: Sequence[float], step: int) -> list[dict[str, Any]]:
        """Log and return the metrics of a split for each share of missing fields."""
        reader = evaluation_reader(self.job, self.schema, split, self.context)
        scenarios = [drop_at_random(share, self.schema) for share in shares]
        try:
            results = evaluate(self.train_state.recommender, reader, scenarios, self.run.spill_folder)
        except TrainingError as error:
            raise TrainingError(f"at step {step}: {error}") from error
        for result in results:
            metrics = {f"{split}/{key}": value for key, value in result.items() if key not in ("missing", "scenario")}
            self.log.note(step, missing=result["missing"], **metrics)
        return results


def _polled(question: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that asks `question` at most every MIN_POLL_SECONDS, and stays True after the first True."""
    answer, asked_at = False, -math.inf

    def poll() -> bool:
        nonlocal answer, asked_at
        if not answer and time.monotonic() - asked_at >= MIN_POLL_SECONDS:
            answer, asked_at = question(), time.monotonic()
        return answer

    return poll
