"""Compute the optimal scores on the synthetic log: the expected probability of a click, given the recorded fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import logit

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.synthetic.click_model import ClickModel, make_click_model
from asymdiffrec.datasets.prepare.synthetic.dataset import draw_split
from asymdiffrec.datasets.prepare.synthetic.optimal_scores import optimal_scores
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.job import Job
from benchmarks.rivals._samples import missing_under, read


def oracle(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """Return the optimal logits [scenarios, R]. A `Rival`.

    They are computed from the click model and the probability that the scenario drops a field. Raises InputError if the
    data was not written by `prepare synthetic`, or the scenario does not drop fields independently.
    """
    generator = json.loads(Path(job.location("profile.json")).read_text()).get("generator")
    if generator is None:
        raise InputError(f"{job.data.path}: not written by `prepare synthetic`, so the optimal scores are not known")
    schema = job.to_schema(statistics)
    model, test = make_click_model(generator["seed"]), read(job, schema, "test")
    scores = []
    for scenario in scenarios:
        missing = missing_under(scenario, schema, test.missing)
        dropped, start, parts = _dropping(model, scenario, schema), 0, []
        for log in draw_split(model, generator["seed"], "test", len(test)):
            stop = start + len(log.label)
            recorded = {name: missing[start:stop, field] for field, name in enumerate(schema.names)}
            parts.append(optimal_scores(dropped, replace(log, missing=recorded), np.random.default_rng(0)))
            start = stop
        scores.append(np.concatenate(parts))
    return logit(np.clip(np.stack(scores), 1e-7, 1 - 1e-7))


def _dropping(model: ClickModel, scenario: Scenario, schema: Schema) -> ClickModel:
    """Return the click model in which the fields that the scenario drops are missing too.

    Raises InputError if the scenario does not drop fields independently.
    """
    if scenario.uses_patterns:
        raise InputError(f"{scenario.name}: optimal scores are only known if fields are dropped independently")
    rates = dict(zip(schema.names, scenario.rates or [0.0] * len(schema.names), strict=True))
    groups = {
        name: replace(
            group,
            missing_probability={
                field: 1 - (1 - p) * (1 - rates[field]) for field, p in group.missing_probability.items()
            },
        )
        for name, group in model.groups.items()
    }
    return replace(model, groups=groups)
