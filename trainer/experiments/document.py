"""The document of a comparison: metrics of each variant under each scenario, and differences with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asymdiffrec.base import InputError
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation import bootstrap
from asymdiffrec.trainer.evaluation.bootstrap import Difference, ModelScores, Samples
from asymdiffrec.trainer.evaluation.evaluate import Scores, concatenate_scores
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.experiments.running import Failure, read_scores
from asymdiffrec.trainer.experiments.tasks import SPLIT, Task
from asymdiffrec.trainer.metrics import METRICS


def make_document(
    tasks: Sequence[Task],
    references: Sequence[str],
    draws: int,
    advance: Callable[[], None] = lambda: None,
    failures: Mapping[str, Failure] | None = None,
) -> dict[str, Any]:
    """Return the document of a comparison, with differences from each of the variants in `references`.

    `failures` are the failed tasks by name. A variant with a failed task is left out. If all references are left out,
    the first remaining variant is the reference. `advance` is called for each variant and seed.

    Raises InputError if variants were evaluated on different rows, and TrainingError if every variant failed.
    """
    failures = failures or {}
    failed_variants = {task.variant.name for task in tasks if task.name in failures}
    compared = [task for task in tasks if task.variant.name not in failed_variants]
    if not compared:
        messages = "; ".join(f"{name}: {failure.message}" for name, failure in failures.items())
        raise TrainingError(f"every variant failed: {messages}")
    scores = {task.folder: _read_scores(task) for task in compared}
    models, first = _models(compared, scores)
    names = list(models)
    references = [name for name in references if name in models] or names[:1]
    comparison = bootstrap.compare(models, _samples(compared, scores, first), draws, advance=advance)
    job = compared[0].read_job()
    scenarios = compared[0].scenarios(job)
    return {
        "job": str(compared[0].job_file),
        "name": job.name,
        "split": SPLIT,
        "rows": len(first.label),
        "seeds": len(models[names[0]]),
        "reference": references[0],
        "draws": draws,
        "variants": names,
        "failed": {name: failure.message for name, failure in failures.items()},
        "diverged": {task.name: task.divergence_file.read_text() for task in compared if task.divergence_file.exists()},
        "scenarios": [{"scenario": scenario.name, "missing": scenario.share} for scenario in scenarios],
        "results": list(_results(comparison.values, scenarios)),
        "periods": list(_results_by_period(compared, scores, scenarios)),
        "differences": [
            row for name in references for row in _differences(name, comparison.differences(name), scenarios)
        ],
    }


def _read_scores(task: Task) -> Scores:
    stored = read_scores(task.folder)
    assert stored is not None, f"{task.folder} has no scores"
    return stored[1]


def _models(tasks: Sequence[Task], scores: Mapping[Path, Scores]) -> tuple[dict[str, list[ModelScores]], Scores]:
    """Return the scores of each variant and seed, with all periods concatenated, and the first of these scores.

    Raises InputError if the labels of the rows differ between variants or seeds.
    """
    by_model: dict[tuple[str, int], list[Task]] = {}
    for task in tasks:
        by_model.setdefault((task.variant.name, task.seed), []).append(task)
    models: dict[str, list[ModelScores]] = {}
    first: Scores | None = None
    for (name, _), parts in by_model.items():
        joined = concatenate_scores([scores[task.folder] for task in parts])
        first = first or joined
        if not np.array_equal(joined.label, first.label):
            raise InputError(
                f"{parts[0].folder}: was evaluated on other rows than {tasks[0].folder}; choose another --out"
            )
        models.setdefault(name, []).append(ModelScores(joined.logits, joined.counted))
    assert first is not None
    return models, first


def _samples(tasks: Sequence[Task], scores: Mapping[Path, Scores], first: Scores) -> Samples:
    """Return the samples of the comparison; with --progressive also the period of each sample."""
    of_first_model = [task for task in tasks if (task.variant, task.seed) == (tasks[0].variant, tasks[0].seed)]
    if of_first_model[0].period is None:
        return Samples(first.label, first.weight, first.user)
    periods = [task.period or 0 for task in of_first_model]
    rows = [len(scores[task.folder].label) for task in of_first_model]
    return Samples(first.label, first.weight, first.user, np.repeat(periods, rows))


def _results(values: Mapping[str, np.ndarray], scenarios: Sequence[Scenario]) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each variant under each scenario; `values` is `Comparison.values`."""
    for name, by_seed in values.items():
        for index, scenario in enumerate(scenarios):
            by_metric = {metric: by_seed[:, index, number] for number, metric in enumerate(METRICS)}
            yield {
                "variant": name,
                "scenario": scenario.name,
                "missing": scenario.share,
                **{metric: _number(values_of_seeds.mean()) for metric, values_of_seeds in by_metric.items()},
                "by_seed": {
                    metric: [_number(value) for value in values_of_seeds]
                    for metric, values_of_seeds in by_metric.items()
                },
            }


def _results_by_period(
    tasks: Sequence[Task], scores: Mapping[Path, Scores], scenarios: Sequence[Scenario]
) -> Iterator[dict[str, Any]]:
    """Yield the results of each period; nothing without --progressive."""
    for period in dict.fromkeys(task.period for task in tasks if task.period):
        tasks_of_period = [task for task in tasks if task.period == period]
        models, first = _models(tasks_of_period, scores)
        values = bootstrap.compare(models, Samples(first.label, first.weight, first.user), draws=0).values
        yield {"period": period, "rows": len(first.label), "results": list(_results(values, scenarios))}


def _differences(
    reference: str, differences: Mapping[str, list[list[Difference]]], scenarios: Sequence[Scenario]
) -> Iterator[dict[str, Any]]:
    """Yield the difference of each variant from the reference, for each scenario and metric."""
    for name, by_scenario in differences.items():
        for scenario, by_metric in zip(scenarios, by_scenario, strict=True):
            for metric, difference in zip(METRICS, by_metric, strict=True):
                value, low, high = map(_number, difference)
                yield {
                    "variant": name,
                    "from": reference,
                    "scenario": scenario.name,
                    "missing": scenario.share,
                    "metric": metric,
                    "difference": value,
                    "low": low,
                    "high": high,
                    "sure": difference.is_sure,
                }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
