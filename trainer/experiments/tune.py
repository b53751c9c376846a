"""Settings chosen on validation data: the law of t, loss weights, drop factors, variant, capacity and rates.

What is minimised is the log loss of the validation split, averaged over shares of missing fields. Random settings are
tried with one seed; then the best of them, `base` and `augment` with more seeds. The one with the smallest mean is
chosen, but base where the difference from it, paired by seed, is within its standard error: the outcome is never
knowingly worse than base.
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
from pathlib import Path
from typing import Any

from rich.console import Console

from asymdiffrec.cluster.parallel_tasks import run_in_parallel
from asymdiffrec.cluster.random_search import random_search
from asymdiffrec.datasets.files.atomic import replace_file
from asymdiffrec.datasets.files.documents import to_yaml
from asymdiffrec.datasets.schema import IdConfig
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.datasets.statistics.seen_ids import seen_ids
from asymdiffrec.datasets.statistics.statistics import MAX_KNOTS
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation.evaluate import evaluation_reader, read_samples
from asymdiffrec.trainer.evaluation.scenarios import unseen_ids
from asymdiffrec.trainer.experiments.tasks import require_same_job
from asymdiffrec.trainer.fit.train import check_job, train_job
from asymdiffrec.trainer.job import Job, read_job, read_statistics
from asymdiffrec.trainer.run import Run, RunOutcome

Settings = Mapping[str, Any]
SEARCHING = 0.6
"""Share of the budget for settings with one seed"""
FINALISTS = 3
"""Of the search, which are trained with more seeds; base and augment are anyway"""
NEW = 0.2
"""Share of validation rows with an id that is in no training row, from which on a field's drop factor is searched"""
BASE, AUGMENT = {"diffusion.method": "base"}, {"diffusion.method": "augment"}


@dataclass(frozen=True)
class Tuning:
    """What is to be chosen for which job."""

    job: str
    """The job file"""
    settings: tuple[str, ...]
    folder: str
    shares: tuple[float, ...]
    """Of missing fields, that the log loss is averaged over"""

    def configured(self, settings: Settings, seed: int) -> Job:
        validation = {"metric": "log_loss", "missing": list(self.shares)}
        own = {
            **settings,
            "train.seed": seed,
            **{f"train.validation.{key}": value for key, value in validation.items()},
        }
        return read_job(
            Path(self.job), [*self.settings, *(f"{path}={json.dumps(value)}" for path, value in own.items())]
        )

    def trial(self, settings: Settings, seed: int) -> Path:
        """The folder of its run."""
        told = _key({**settings, "seed": seed})
        return Path(self.folder) / "trials" / hashlib.sha256(told.encode()).hexdigest()[:12]


@dataclass
class Candidate:
    settings: dict[str, Any]
    losses: dict[int, float] = field(default_factory=dict)
    """Validation log loss by seed; infinite where training failed"""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses.values())


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def space_of(job: Job) -> dict[str, list[Any]]:
    """The choices for each setting. Capacity and rates are multiples of the job's own; fields whose ids are often new
    may be dropped less."""
    hidden = getattr(job.model.extractor, "hidden", None)
    optimizer = job.tables.optimizer.model_dump(mode="json")
    space: dict[str, list[Any]] = {
        "diffusion.method": ["base", "augment", "asymdiff", "asymdiff"],
        "diffusion.weights.recon": [0.0, 0.3],
        "diffusion.weights.aux": [0.3, 1.0],
        "diffusion.weights.distil": [0.0, 0.3, 1.0],
        "train.learning_rate": [scale * job.train.learning_rate for scale in (0.5, 1.0, 2.0)],
        "train.weight_decay": [0.0, 0.01],
        "tables.optimizer": [
            {**optimizer, "learning_rate": scale * optimizer["learning_rate"]} for scale in (0.5, 1.0, 2.0)
        ],
        "tables.embedding_dim": sorted({max(4, job.tables.embedding_dim // 2 // 4 * 4), job.tables.embedding_dim}),
    }
    if job.diffusion.forward.pattern == "uniform":
        space["diffusion.forward.time"] = [
            {"law": "uniform", "low": 0.0, "high": high} for high in (0.3, 0.5, 0.8, 1.0)
        ]
    if job.to_schema().numeric:
        space["tables.numeric_bins"] = sorted({0, 16, job.tables.numeric_bins, MAX_KNOTS})
    if hidden is not None:
        space["model.extractor.hidden"] = [[scale * size for size in hidden] for scale in (1, 2)]
    for name in often_new(job):
        space[f"fields.{name}.drop"] = [0.0, 0.3, 1.0]
    return space


def often_new(job: Job) -> list[str]:
    """The fields of type id whose ids in validation rows are often in no training row."""
    schema = job.to_schema(read_statistics(job))
    names = [name for name, found in schema.fields.items() if isinstance(found, IdConfig)]
    seen = seen_ids(schema, open_shards(job.location("train")), names)
    reader = evaluation_reader(job, schema, "valid")
    counts, *_ = read_samples(reader, [unseen_ids(name, schema) for name in names], seen)
    return [name for name, new in zip(names, counts, strict=True) if new.mean() >= NEW]


def first_of(space: Mapping[str, Sequence[Any]], job: Job) -> list[dict[str, Any]]:
    """What is tried before anything random: base, augment and asymdiff with the job's own settings, and asymdiff that
    drops less."""
    plain = {name: _default(name, choices, job) for name, choices in space.items()}
    asymdiff = {**plain, "diffusion.method": "asymdiff"}
    gentle = {**asymdiff, "diffusion.weights.distil": 0.0, **{name: 0.0 for name in space if name.endswith(".drop")}}
    if times := space.get("diffusion.forward.time"):
        gentle["diffusion.forward.time"] = times[1]
    return [{**plain, **BASE}, {**plain, **AUGMENT}, asymdiff, gentle]


def canonical(settings: Settings, plain: Settings) -> dict[str, Any]:
    """The settings with those plain that the variant does not use, so that the same training is known as such."""
    unused = {
        "base": lambda name: name.startswith("diffusion.") or name.endswith(".drop"),
        "augment": lambda name: name in ("diffusion.weights.recon", "diffusion.weights.distil"),
    }.get(settings["diffusion.method"], lambda name: False)
    return {
        name: plain[name] if name != "diffusion.method" and unused(name) else value for name, value in settings.items()
    }


def _default(name: str, choices: Sequence[Any], job: Job) -> Any:
    value: Any = job.model_dump(mode="json")
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if value in choices else choices[-1]


def trained(tuning: Tuning, pair: tuple[Settings, int]) -> float:
    """The validation log loss of settings with a seed; from the run that is there, where there is one."""
    settings, seed = pair
    config, run = tuning.configured(settings, seed), Run(tuning.trial(settings, seed))
    if run.result() is None:
        try:
            result = train_job(config, read_statistics(config), run, Console(quiet=True))
        except TrainingError:
            return math.inf
        if result["outcome"] == RunOutcome.INTERRUPTED:
            raise KeyboardInterrupt
    result = run.result() or {}
    return float(result["best_value"])


def _judge(tuning: Tuning, plain: Settings, settings: Settings) -> float:
    return trained(tuning, (canonical(settings, plain), 0))


def tune(
    tuning: Tuning,
    seconds: float,
    seeds: int,
    at_once: int,
    address: str | None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Search within about so many seconds; a document of what was tried, what is chosen, and why. However little time
    there is, base and augment are trained.

    Raises InputError where the job is wrong.
    """
    start = time.monotonic()
    job = tuning.configured({}, 0)
    check_job(job, read_statistics(job), None)
    require_same_job(Path(tuning.folder), job)
    space = space_of(job)
    anchors = first_of(space, job)
    number = iter(range(1, 10**9))

    def told(settings: Settings, loss: float) -> None:
        known = described(canonical(settings, anchors[0]), anchors[0])
        tell(f"{next(number)}  log loss {loss:.4f}  {known}")

    found = random_search(
        partial(_judge, tuning, anchors[0]), space, anchors, SEARCHING * seconds, at_once, address, on_result=told
    )
    tried = {_key(one): Candidate(one, {0: loss}) for one, loss in ((canonical(s, anchors[0]), x) for s, x in found)}
    base, augment = (tried.setdefault(_key(anchor), Candidate(dict(anchor))) for anchor in anchors[:2])
    ranked = sorted(tried.values(), key=lambda one: one.losses.get(0, math.inf))
    best = [one for one in ranked if one is not base and one is not augment][:FINALISTS]
    finalists = [base, augment, *best]
    trial_seconds = (time.monotonic() - start) / max(1, len(found)) * at_once
    left = max(1, int((seconds - (time.monotonic() - start)) * at_once / trial_seconds / len(finalists)))
    more = range(min(seeds, 1 + left))
    work = [(one, seed) for seed in more for one in finalists if seed not in one.losses]
    tell(f"{len(finalists)} of them with {len(more)} seed{'s' if len(more) > 1 else ''}")
    pairs = [(one.settings, seed) for one, seed in work]
    for (settings, seed), loss in run_in_parallel(partial(trained, tuning), pairs, at_once, address):
        tried[_key(settings)].losses[seed] = loss
        tell(f"seed {seed}  log loss {loss:.4f}  {described(settings, anchors[0])}")
    chosen, why = choose(base, finalists)
    return {
        "job": tuning.job,
        "shares": list(tuning.shares),
        "seconds": time.monotonic() - start,
        "trials": len(found) + len(work),
        "chosen": chosen.settings,
        "is": described(chosen.settings, anchors[0]),
        "why": why,
        "finalists": [_told(one, base, anchors[0]) for one in sorted(finalists, key=lambda one: one.mean)],
        "others": [_told(one, base, anchors[0]) for one in ranked if one not in finalists],
    }


def choose(base: Candidate, finalists: Sequence[Candidate]) -> tuple[Candidate, str]:
    """The best of those that are below base by more than the standard error of the difference; else base; and why."""
    seeds = f"{len(base.losses)} seed{'s' if len(base.losses) > 1 else ''}"
    for one in sorted(finalists, key=lambda one: one.mean):
        if one is base or not math.isfinite(one.mean):
            continue
        mean, error = _from(one, base)
        if mean + error < 0:
            return one, (
                f"its validation log loss is {-mean:.4f} below that of base with the job's settings, {base.mean:.4f} "
                f"(mean of {seeds}, standard error {error:.4f})"
            )
    return base, f"no other was below its validation log loss of {base.mean:.4f} by more than chance ({seeds})"


def _from(one: Candidate, base: Candidate) -> tuple[float, float]:
    """Mean of the difference from base by seed, and its standard error; 0 of one seed."""
    found = [one.losses[seed] - base.losses[seed] for seed in base.losses if seed in one.losses]
    return statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0


def _told(one: Candidate, base: Candidate, plain: Settings) -> dict[str, Any]:
    losses = {seed: loss if math.isfinite(loss) else None for seed, loss in sorted(one.losses.items())}
    return {"settings": one.settings, "is": described(one.settings, plain), "log_loss": losses}


def described(settings: Settings, plain: Settings) -> str:
    """The variant, and what differs from the plain settings."""
    changed = []
    for name, value in settings.items():
        usual, short = plain[name], name.removeprefix("diffusion.")
        if name == "diffusion.method" or value == usual:
            continue
        if isinstance(value, dict):
            changed += [f"{short}.{key}={json.dumps(own)}" for key, own in value.items() if own != usual.get(key)]
        else:
            changed.append(f"{short}={json.dumps(value)}")
    return " ".join([settings["diffusion.method"], *changed])


def write_outcome(tuning: Tuning, document: Mapping[str, Any]) -> Path:
    """`tuning.json`, and the job file that was chosen; gives the latter."""
    folder = Path(tuning.folder)
    replace_file(folder / "tuning.json", json.dumps(document, indent=2).encode())
    job = tuning.configured(document["chosen"], read_job(Path(tuning.job), tuning.settings).train.seed)
    told = f"# Chosen by asymdiffrec tune: {document['why']}.\n"
    replace_file(folder / "job.yaml", (told + to_yaml(job)).encode())
    return folder / "job.yaml"
