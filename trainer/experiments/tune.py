"""Search for values of a job on validation data, within a time budget.

The objective is the log loss of the validation split, averaged over shares of missing fields. Random candidates are
trained with one seed. Then the best candidates, `base` and `augment` are trained with more seeds. The choice is
the best candidate whose mean loss, paired by seed, is below the loss of base by more than the standard error of the
difference. If no candidate qualifies, the choice is base.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console

from asymdiffrec.cluster.parallel_tasks import run_in_parallel
from asymdiffrec.cluster.random_search import random_search
from asymdiffrec.datasets.files.atomic import replace_file
from asymdiffrec.datasets.files.documents import to_yaml
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.experiments.search_space import (
    Overrides,
    canonical,
    describe,
    first_candidates,
    make_search_space,
)
from asymdiffrec.trainer.experiments.tasks import require_same_job
from asymdiffrec.trainer.experiments.text import plural
from asymdiffrec.trainer.fit.train import check_job, train_job
from asymdiffrec.trainer.job import Job, read_job, read_statistics
from asymdiffrec.trainer.run import Run, RunOutcome

SEARCH_SHARE = 0.6
"""Share of the budget that is spent on candidates with one seed"""
NUM_FINALISTS = 3
"""Number of candidates that are trained with more seeds, in addition to base and augment"""


@dataclass(frozen=True)
class Tuning:
    """A job with overrides to tune, and the shares of missing fields that the objective averages over."""

    job_file: str
    overrides: tuple[str, ...]
    """Overrides PATH=VALUE of the job file, for all trials"""
    folder: str
    """Folder of all trials and the result"""
    shares: tuple[float, ...]

    def trial_job(self, overrides: Overrides, seed: int) -> Job:
        """Return the job of a trial. Raises InputError if its overrides do not fit."""
        values = {
            **overrides,
            "train.seed": seed,
            "train.validation.metric": "log_loss",
            "train.validation.missing": list(self.shares),
        }
        trial_overrides = [f"{path}={json.dumps(value)}" for path, value in values.items()]
        return read_job(Path(self.job_file), [*self.overrides, *trial_overrides])

    def trial_folder(self, overrides: Overrides, seed: int) -> Path:
        """Return the run directory of a trial. Equal overrides and seed give the same directory."""
        key = _key({**overrides, "seed": seed})
        return Path(self.folder) / "trials" / hashlib.sha256(key.encode()).hexdigest()[:12]


@dataclass
class Candidate:
    """Overrides with the results of their trials."""

    overrides: dict[str, Any]
    losses: dict[int, float] = field(default_factory=dict)
    """Validation log loss by seed; infinite if training failed"""

    @property
    def mean(self) -> float:
        """Validation log loss, averaged over seeds."""
        return statistics.fmean(self.losses.values())


def tune(
    tuning: Tuning,
    seconds: float,
    seeds: int,
    parallel: int,
    address: str | None,
    on_line: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Search for about `seconds`. Return a document with the trials, the chosen candidate, and the reason.

    seconds: budget of the search. Base and augment are trained even if it is too small.
    seeds: maximum number of trials of each finalist; the budget may allow fewer.
    parallel: number of trainings at the same time.
    address: the Ray cluster; None: this host.
    on_line: called with a line of progress after each trial.

    Raises InputError if the job is wrong.
    """
    start = time.monotonic()
    job = tuning.trial_job({}, 0)
    check_job(job, read_statistics(job), None)
    require_same_job(Path(tuning.folder), job)
    space = make_search_space(job)
    first = first_candidates(space, job)
    defaults = first[0]
    numbers = iter(range(1, 10**9))

    def report(overrides: Overrides, loss: float) -> None:
        on_line(f"{next(numbers)}  log loss {loss:.4f}  {describe(canonical(overrides, defaults), defaults)}")

    objective = partial(_objective, tuning, defaults)
    trials = random_search(objective, space, first, SEARCH_SHARE * seconds, parallel, address, on_result=report)
    candidates: dict[str, Candidate] = {}
    for trial_overrides, loss in trials:
        overrides = canonical(trial_overrides, defaults)
        candidates[_key(overrides)] = Candidate(overrides, {0: loss})
    base, augment = (candidates.setdefault(_key(anchor), Candidate(dict(anchor))) for anchor in first[:2])
    ranked = sorted(candidates.values(), key=lambda candidate: candidate.losses.get(0, math.inf))
    best = [candidate for candidate in ranked if candidate is not base and candidate is not augment][:NUM_FINALISTS]
    finalists = [base, augment, *best]

    elapsed = time.monotonic() - start
    trial_seconds = elapsed / max(1, len(trials)) * parallel
    rounds = max(1, int((seconds - elapsed) * parallel / trial_seconds / len(finalists)))
    num_seeds = min(seeds, 1 + rounds)
    pairs = [
        (candidate.overrides, seed)
        for seed in range(num_seeds)
        for candidate in finalists
        if seed not in candidate.losses
    ]
    on_line(f"training {len(finalists)} finalists with {plural(num_seeds, 'seed')}")
    for (overrides, seed), loss in run_in_parallel(partial(run_trial, tuning), pairs, parallel, address):
        candidates[_key(overrides)].losses[seed] = loss
        on_line(f"seed {seed}  log loss {loss:.4f}  {describe(overrides, defaults)}")

    chosen, reason = choose(base, finalists)
    return {
        "job": tuning.job_file,
        "shares": list(tuning.shares),
        "seconds": time.monotonic() - start,
        "trials": len(trials) + len(pairs),
        "chosen": chosen.overrides,
        "description": describe(chosen.overrides, defaults),
        "reason": reason,
        "finalists": [
            _row(candidate, defaults) for candidate in sorted(finalists, key=lambda candidate: candidate.mean)
        ],
        "others": [_row(candidate, defaults) for candidate in ranked if candidate not in finalists],
    }


def run_trial(tuning: Tuning, trial: tuple[Overrides, int]) -> float:
    """Train a trial (overrides, seed) and return its validation log loss, infinite if training diverged.

    A trial that finished earlier is not trained again.
    """
    overrides, seed = trial
    job, run = tuning.trial_job(overrides, seed), Run(tuning.trial_folder(overrides, seed))
    result = run.result()
    if result is None:
        try:
            result = train_job(job, read_statistics(job), run, Console(quiet=True))
        except TrainingError:
            return math.inf
        if result["outcome"] == RunOutcome.INTERRUPTED:
            raise KeyboardInterrupt
    return float(result["best_value"])


def choose(base: Candidate, finalists: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Return the chosen candidate and the reason.

    The choice is the best finalist whose mean loss is below the loss of base by more than the standard error of the
    difference. If no finalist qualifies, the choice is base.
    """
    seeds = plural(len(base.losses), "seed")
    for candidate in sorted(finalists, key=attrgetter("mean")):
        if candidate is base or not math.isfinite(candidate.mean):
            continue
        mean, error = _difference(candidate, base)
        if mean + error < 0:
            return candidate, (
                f"its validation log loss is {-mean:.4f} below the log loss of base with the job's values, "
                f"{base.mean:.4f} (mean of {seeds}, standard error {error:.4f})"
            )
    return base, f"no other candidate has a validation log loss below {base.mean:.4f} by more than chance ({seeds})"


def write_result(tuning: Tuning, document: Mapping[str, Any]) -> Path:
    """Write tuning.json and the chosen job.yaml. Return the path of job.yaml."""
    folder = Path(tuning.folder)
    replace_file(folder / "tuning.json", json.dumps(document, indent=2).encode())
    job = tuning.trial_job(document["chosen"], read_job(Path(tuning.job_file), tuning.overrides).train.seed)
    comment = f"# Chosen by asymdiffrec tune: {document['reason']}.\n"
    replace_file(folder / "job.yaml", (comment + to_yaml(job)).encode())
    return folder / "job.yaml"


def _objective(tuning: Tuning, defaults: Overrides, overrides: Overrides) -> float:
    return run_trial(tuning, (canonical(overrides, defaults), 0))


def _key(overrides: Overrides) -> str:
    return json.dumps(overrides, sort_keys=True)


def _difference(candidate: Candidate, base: Candidate) -> tuple[float, float]:
    """Return the difference from base, averaged over seeds, and its standard error (0 for one seed)."""
    differences = [candidate.losses[seed] - base.losses[seed] for seed in base.losses if seed in candidate.losses]
    num = len(differences)
    error = statistics.stdev(differences) / math.sqrt(num) if num > 1 else 0.0
    return statistics.fmean(differences), error


def _row(candidate: Candidate, defaults: Overrides) -> dict[str, Any]:
    losses = {seed: loss if math.isfinite(loss) else None for seed, loss in sorted(candidate.losses.items())}
    description = describe(candidate.overrides, defaults)
    return {"overrides": candidate.overrides, "description": description, "log_loss": losses}
