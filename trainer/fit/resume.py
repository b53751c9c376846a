"""Resume a run: which settings may change, and whether the run has already ended."""

from __future__ import annotations

import json
from operator import attrgetter

from pydantic_core import to_jsonable_python

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.documents import first_difference
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.fit.train import check_job
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import Run

FIXED_PATHS = (
    *("data.lanes", "data.window", "fields", "model", "train.seed", "train.batch_size", "train.accumulate"),
    *("tables.embedding_dim", "tables.optimizer.name", "tables.managed", "tables.managed_tables"),
    *("diffusion.method", "diffusion.options", "diffusion.denoiser_hidden", "diffusion.space", "diffusion.fill"),
    *("diffusion.mask_in_extractor", "diffusion.mask_in_denoiser", "diffusion.fields_in_denoiser"),
    "tables.numeric_bins",
)
"""Paths of job values that a resumed run cannot change: shapes in its checkpoints or its sample order depend on them"""


def resumed_job(run: Run, overrides: tuple[str, ...]) -> Job:
    """Return the job that a run was started with, with `PATH=VALUE` overrides applied.

    Raises InputError if an override changes a value in FIXED_PATHS, or if the run has already ended.
    """
    before, job = run.job(), run.job(overrides)
    for path in FIXED_PATHS:
        old, new = (to_jsonable_python(attrgetter(path)(either)) for either in (before, job))
        if change := first_difference(old, new, path):
            where, *values = change
            old_text, new_text = map(json.dumps, values)
            raise InputError(
                f"{where} is {new_text}, but {run.path} was started with {old_text}; to change it, start a new "
                f"run; --init-from {run.path} starts it from the weights of this run"
            )
    checkpoints = Checkpoints(run.checkpoints(job))
    if steps := checkpoints.steps():
        progress = checkpoints.progress(steps[-1])
        all_steps, _ = check_job(job, run.statistics(), run.training_files())
        patience = job.train.validation.patience
        has_ended = progress.step >= all_steps or progress.validations_since_best >= patience
        if has_ended and run.result():  # without a result, the test split is not evaluated yet
            raise InputError(
                f"{run.path}: has ended at step {progress.step}; to continue, raise train.epochs (or train.steps) "
                "or train.validation.patience with --set"
            )
    return job
