"""The same work for several variants and seeds: train each, score the test split under each scenario, compare.

A folder holds all of it, NAME/seed-S with the run and `scores.npz`; what is there already is not done again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import replace_file
from asymdiffrec.datasets.files.documents import first_difference
from asymdiffrec.datasets.prepare.periods import write_periods
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation import bootstrap
from asymdiffrec.trainer.evaluation.bootstrap import Judged, Samples
from asymdiffrec.trainer.evaluation.evaluate import Scores, concatenate_scores, evaluation_reader, read_samples
from asymdiffrec.trainer.evaluation.scenarios import Scenario, ScenarioOptions, training_ids
from asymdiffrec.trainer.experiments.variants import Contender, load_rival
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.inference.evaluate_run import score_run
from asymdiffrec.trainer.job import Job, read_job, read_statistics
from asymdiffrec.trainer.metrics import METRICS
from asymdiffrec.trainer.run import Run, RunOutcome

SPLIT = "test"


@dataclass(frozen=True)
class Task:
    """One contender with one seed."""

    contender: Contender
    seed: int
    job: str
    """The job file"""
    settings: tuple[str, ...]
    folder: str
    asked: ScenarioOptions
    period: int | None = None
    """Which part of the rows it is judged on, where these are parts"""

    @property
    def name(self) -> str:
        period = f", period {self.period}" if self.period else ""
        return f"{self.contender.name}, seed {self.seed}{period}"

    def configured(self) -> Job:
        """Its job; InputError where its settings do not fit."""
        return read_job(Path(self.job), [*self.settings, *self.contender.settings, f"train.seed={self.seed}"])

    def scenarios(self, config: Job) -> list[Scenario]:
        """Those that are asked for; InputError where the data have no such field."""
        return self.asked.scenarios(config.to_schema(read_statistics(config)))


def tasks(
    job: Path,
    contenders: Sequence[Contender],
    seeds: int,
    settings: Sequence[str],
    folder: Path,
    asked: ScenarioOptions,
) -> list[Task]:
    """One for each contender and seed, seed by seed. Raises InputError for what can be seen to be wrong before any is
    done: a setting, a scenario, or a folder in which one of them was done with other settings."""
    found = [
        Task(contender, seed, str(job), tuple(settings), str(folder / contender.name / f"seed-{seed}"), asked)
        for seed in range(seeds)
        for contender in contenders
    ]
    for task in found:
        config = task.configured()
        task.scenarios(config)
        require_same(Path(task.folder), config)
    return found


def progressive(
    job: Path,
    contenders: Sequence[Contender],
    seeds: int,
    settings: Sequence[str],
    folder: Path,
    asked: ScenarioOptions,
    count: int,
) -> list[Task]:
    """As `tasks`, for each of `count` periods: judged on the rows of it, trained on those of earlier times.

    Raises InputError where the job names no column of times.
    """
    config = read_job(job, settings)
    if config.data.time is None:
        raise InputError(f"{job}: data.time: names no column; periods are in its order")
    sources = [open_shards(config.location(split)) for split in ("train", "valid", SPLIT)]
    document = config.model_dump(mode="json", exclude_unset=True)
    apart = folder / f"progressive-{count}"
    require_same(apart, config)
    jobs = write_periods(apart / "periods", sources, document, config.data.time, count)
    return [
        replace(task, period=number)
        for number, own in enumerate(jobs, start=1)
        for task in tasks(own, contenders, seeds, (), apart / f"period-{number}", asked)
    ]


def require_same(folder: Path, config: Job) -> None:
    """Keep in `folder` what its content depends on; InputError where it was made with something else."""
    kept = folder / "asked.json"
    now = config.model_dump(mode="json", exclude={"cluster"})
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(kept, json.dumps(now).encode())
    elif found := first_difference(json.loads(kept.read_text()), now):
        where, had, has = found
        raise InputError(
            f"{folder}: was made with {where.removeprefix('.')} {json.dumps(had)}, not {json.dumps(has)}; choose "
            "another --out"
        )


def run(task: Task) -> float:
    """Do what is not done yet of a task; the AUC of the first scenario."""
    folder, config = Path(task.folder), task.configured()
    names = [scenario.name for scenario in task.scenarios(config)]
    if (kept := _read(folder)) is None or kept[0] != names:
        scores = _rival(task, config) if task.contender.rival else _train(task, config)
        _write(folder, names, scores)
    else:
        scores = kept[1]
    samples = Samples(scores.label, scores.weight, scores.user)
    found = bootstrap.compare({"": [Judged(scores.logits[:1], scores.counted[:1])]}, samples, draws=0)
    return float(found.values[""][0, 0, 0])


def _train(task: Task, config: Job) -> Scores:
    run = Run(Path(task.folder) / "run")
    if run.result() is None:
        try:
            result = train_job(config, read_statistics(config), run, Console(quiet=True))
        except TrainingError as error:
            statistics = Checkpoints(run.checkpoints(config)).best() is not None
            how = "at its best step before that" if statistics else "as a constant, for it had no checkpoint"
            replace_file(_diverged(task), f"{how}: {error}".encode())
            if not statistics:
                return _of_rows(task, config, _constant(config))
        else:
            if result["outcome"] == RunOutcome.INTERRUPTED:
                raise KeyboardInterrupt
    return score_run(run.path, SPLIT, task.asked)


def _diverged(task: Task) -> Path:
    """Says what is judged in place of a model whose training has ended, and how it failed."""
    return Path(task.folder) / "diverged.txt"


def _constant(config: Job) -> Callable[[list[Scenario], int], np.ndarray]:
    """The same logit for all, that of the training rows' rate."""
    rate = read_statistics(config).label_rate
    return lambda scenarios, rows: np.full((len(scenarios), rows), np.log(rate / (1 - rate)))


def _rival(task: Task, config: Job) -> Scores:
    assert task.contender.rival is not None
    rival = load_rival(task.contender.rival)
    return _of_rows(task, config, lambda scenarios, _: rival(config, read_statistics(config), scenarios, task.seed))


def _of_rows(task: Task, config: Job, logits_of: Callable[[list[Scenario], int], np.ndarray]) -> Scores:
    """The rows of the split, with logits [scenarios, rows] by other means than a run."""
    schema = config.to_schema(read_statistics(config))
    scenarios = task.asked.scenarios(schema)
    reader = evaluation_reader(config, schema, SPLIT)
    counts, label, weight, user = read_samples(reader, scenarios, training_ids(scenarios, config, schema))
    logits = logits_of(scenarios, len(label))
    if logits.shape != counts.shape or not np.isfinite(logits).all():
        raise InputError(
            f"{task.contender.rival}: gave {list(logits.shape)} scores, {int((~np.isfinite(logits)).sum())} of them "
            f"not finite; expected {list(counts.shape)} finite ones"
        )
    return Scores(logits.astype(np.float32), counts, label, weight, user)


def _write(folder: Path, names: list[str], scores: Scores) -> None:
    arrays: dict[str, Any] = {
        "logits": scores.logits,
        "counts": scores.counted,
        "label": scores.label,
        "weight": scores.weight,
    }
    if scores.user is not None:
        arrays["user"] = scores.user
    file = io.BytesIO()
    np.savez_compressed(file, scenarios=np.array(names), **arrays)
    replace_file(folder / "scores.npz", file.getvalue())


def _read(folder: Path) -> tuple[list[str], Scores] | None:
    path = folder / "scores.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as found:
        user = found.get("user")
        scores = Scores(found["logits"], found["counts"], found["label"], found["weight"], user)
        return found["scenarios"].tolist(), scores


def compared(
    work: Sequence[Task], references: Sequence[str], draws: int, advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The document of a comparison: metrics of each variant under each scenario, and differences from each reference.

    Raises InputError where the runs were judged on different rows.
    """
    trained: dict[tuple[str, int], list[Task]] = {}
    for task in work:
        trained.setdefault((task.contender.name, task.seed), []).append(task)
    kept = {task.folder: _scores(task) for task in work}
    scores = {pair: concatenate_scores([kept[task.folder] for task in parts]) for pair, parts in trained.items()}
    first = next(iter(scores.values()))
    models: dict[str, list[Judged]] = {}
    for (name, seed), own in scores.items():
        if not np.array_equal(own.label, first.label):
            folder = trained[name, seed][0].folder
            raise InputError(f"{folder}: was judged on other rows than {work[0].folder}; choose another --out")
        models.setdefault(name, []).append(Judged(own.logits, own.counted))
    names = list(models)
    lengths = {task.period: len(kept[task.folder].label) for task in next(iter(trained.values()))}
    period = None if None in lengths else np.repeat(list(lengths), list(lengths.values()))
    samples = Samples(first.label, first.weight, first.user, period)
    found = bootstrap.compare(models, samples, draws, advance=advance)
    config = work[0].configured()
    scenarios = work[0].scenarios(config)
    return {
        "job": work[0].job,
        "name": config.name,
        "split": SPLIT,
        "rows": len(first.label),
        "seeds": len(models[names[0]]),
        "reference": references[0],
        "draws": draws,
        "variants": names,
        "diverged": {task.name: _diverged(task).read_text() for task in work if _diverged(task).exists()},
        "scenarios": [{"scenario": one.name, "missing": one.share} for one in scenarios],
        "results": list(_results(found.values, scenarios)),
        "periods": list(_periods(work, kept, scenarios)),
        "differences": [cell for name in references for cell in _differences(name, found.differences(name), scenarios)],
    }


def _periods(
    work: Sequence[Task], kept: Mapping[str, Scores], scenarios: Sequence[Scenario]
) -> Iterator[dict[str, Any]]:
    """The results of each period, where there are; `kept` has the scores by the task's folder."""
    for period in dict.fromkeys(task.period for task in work if task.period):
        models: dict[str, list[Judged]] = {}
        for task in work:
            if task.period == period:
                own = kept[task.folder]
                models.setdefault(task.contender.name, []).append(Judged(own.logits, own.counted))
                samples = Samples(own.label, own.weight, own.user)
        values = bootstrap.compare(models, samples, draws=0).values
        yield {"period": period, "rows": len(samples.label), "results": list(_results(values, scenarios))}


def _scores(task: Task) -> Scores:
    kept = _read(Path(task.folder))
    assert kept is not None, f"{task.folder} has no scores"
    return kept[1]


def _results(values: Mapping[str, np.ndarray], scenarios: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for name, found in values.items():
        for place, scenario in enumerate(scenarios):
            by_metric = {metric: found[:, place, number] for number, metric in enumerate(METRICS)}
            yield {
                "variant": name,
                "scenario": scenario.name,
                "missing": scenario.share,
                **{metric: _number(own.mean()) for metric, own in by_metric.items()},
                "by_seed": {metric: [_number(value) for value in own] for metric, own in by_metric.items()},
            }


def _differences(reference: str, found: Mapping[str, Any], scenarios: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for name, rows in found.items():
        for scenario, cells in zip(scenarios, rows, strict=True):
            for metric, cell in zip(METRICS, cells, strict=True):
                value, low, high = map(_number, cell)
                yield {
                    "variant": name,
                    "from": reference,
                    "scenario": scenario.name,
                    "missing": scenario.share,
                    "metric": metric,
                    "difference": value,
                    "low": low,
                    "high": high,
                    "sure": cell.is_sure,
                }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
