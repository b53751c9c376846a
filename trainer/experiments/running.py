"""Run one task of a comparison: train the variant, score the test split, and store the scores.

All results are stored in the task's folder, so a comparison that is started again does only the missing work.
"""

from __future__ import annotations

import io
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asymdiffrec.base import InputError
from asymdiffrec.cluster.errors import last_line
from asymdiffrec.datasets.files.atomic import replace_file
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation import bootstrap
from asymdiffrec.trainer.evaluation.bootstrap import ModelScores, Samples
from asymdiffrec.trainer.evaluation.evaluate import Scores, evaluation_reader, read_samples
from asymdiffrec.trainer.evaluation.scenarios import Scenario, training_ids
from asymdiffrec.trainer.experiments.tasks import SPLIT, Task
from asymdiffrec.trainer.experiments.variants import load_rival
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.inference.evaluate_run import score_run
from asymdiffrec.trainer.job import Job, read_statistics
from asymdiffrec.trainer.metrics import METRICS
from asymdiffrec.trainer.run import Run, RunOutcome


@dataclass(frozen=True)
class Failure:
    """The error that ended a task, in one line."""

    message: str


def try_task(task: Task) -> float | Failure:
    """Run a task like `run_task`, but return any error as a `Failure`.

    The traceback goes to the task's `failure_file`, which is deleted when the task runs again.
    """
    task.failure_file.unlink(missing_ok=True)
    try:
        return run_task(task)
    except Exception as error:  # an error in one variant, for example in a user's method, must not stop the others
        replace_file(task.failure_file, traceback.format_exc().encode())
        is_message_enough = isinstance(error, InputError | TrainingError)
        return Failure(str(error) if is_message_enough else f"{type(error).__name__}: {last_line(error)}")


def run_task(task: Task) -> float:
    """Train and score a task, unless stored results exist; return its AUC under the first scenario."""
    job = task.read_job()
    names = [scenario.name for scenario in task.scenarios(job)]
    stored = read_scores(task.folder)
    if stored is not None and stored[0] == names:
        scores = stored[1]
    else:
        scores = _score_rival(task, job) if task.variant.rival else _train_and_score(task, job)
        _write_scores(task.folder, names, scores)
    samples = Samples(scores.label, scores.weight, scores.user)
    first = ModelScores(scores.logits[:1], scores.counted[:1])
    values = bootstrap.compare({"": [first]}, samples, draws=0).values[""]
    return float(values[0, 0, list(METRICS).index("auc")])


def read_scores(folder: Path) -> tuple[list[str], Scores] | None:
    """Return the names of the scenarios and the scores that a task stored, or None if it has not finished."""
    path = folder / "scores.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        scores = Scores(arrays["logits"], arrays["counted"], arrays["label"], arrays["weight"], arrays.get("user"))
        return arrays["scenarios"].tolist(), scores


def _write_scores(folder: Path, names: list[str], scores: Scores) -> None:
    arrays: dict[str, Any] = {
        "logits": scores.logits,
        "counted": scores.counted,
        "label": scores.label,
        "weight": scores.weight,
    }
    if scores.user is not None:
        arrays["user"] = scores.user
    file = io.BytesIO()
    np.savez_compressed(file, scenarios=np.array(names), **arrays)
    replace_file(folder / "scores.npz", file.getvalue())


def _train_and_score(task: Task, job: Job) -> Scores:
    """Train, and return the scores of the best step.

    If training diverges, the best checkpoint written before is scored. If no checkpoint exists, all samples get the
    same constant score.
    """
    run = Run(task.folder / "run")
    if run.result() is None:
        try:
            result = train_job(job, read_statistics(job), run, Console(quiet=True))
        except TrainingError as error:
            has_checkpoint = Checkpoints(run.checkpoints(job)).best() is not None
            model = "at its best step before that" if has_checkpoint else "as a constant, because it has no checkpoint"
            replace_file(task.divergence_file, f"{model}: {error}".encode())
            if not has_checkpoint:
                return _score_rows(task, job, _constant_logits(job))
        else:
            if result["outcome"] == RunOutcome.INTERRUPTED:
                raise KeyboardInterrupt
    return score_run(run.path, SPLIT, task.options)


def _score_rival(task: Task, job: Job) -> Scores:
    assert task.variant.rival is not None
    rival = load_rival(task.variant.rival)
    return _score_rows(task, job, lambda scenarios, _: rival(job, read_statistics(job), scenarios, task.seed))


def _constant_logits(job: Job) -> Callable[[list[Scenario], int], np.ndarray]:
    """Return a function that gives every row the logit of the training rows' label rate."""
    rate = read_statistics(job).label_rate
    return lambda scenarios, rows: np.full((len(scenarios), rows), np.log(rate / (1 - rate)))


def _score_rows(task: Task, job: Job, logits_of: Callable[[list[Scenario], int], np.ndarray]) -> Scores:
    """Return the rows of the split with the logits [K, R] that `logits_of` returns for K scenarios and R rows."""
    schema = job.to_schema(read_statistics(job))
    scenarios = task.options.scenarios(schema)
    reader = evaluation_reader(job, schema, SPLIT)
    samples = read_samples(reader, scenarios, training_ids(scenarios, job, schema))
    logits = logits_of(scenarios, len(samples.label))
    if logits.shape != samples.counted.shape or not np.isfinite(logits).all():
        raise InputError(
            f"{task.variant.rival}: returned logits {list(logits.shape)}, {int((~np.isfinite(logits)).sum())} of them "
            f"not finite; expected finite logits {list(samples.counted.shape)} (scenarios, rows)"
        )
    return Scores(logits.astype(np.float32), samples.counted, samples.label, samples.weight, samples.user)
