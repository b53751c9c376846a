"""The best that any model can do on the synthetic log: the expected probability of a click given what is recorded."""

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
    """It knows the world, and with which probability a scenario drops a field: a `Rival`."""
    told = json.loads(Path(job.location("profile.json")).read_text()).get("generator")
    if told is None:
        raise InputError(f"{job.data.path}: not made by `prepare synthetic`, so that nobody knows the best")
    schema = job.to_schema(statistics)
    model, test = make_click_model(told["seed"]), read(job, schema, "test")
    found = []
    for scenario in scenarios:
        missing = missing_under(scenario, schema, test.missing)
        dropped, start, parts = _dropping(model, scenario, schema), 0, []
        for log in draw_split(model, told["seed"], "test", len(test)):
            stop = start + len(log.label)
            own = {name: missing[start:stop, place] for place, name in enumerate(schema.names)}
            parts.append(optimal_scores(dropped, replace(log, missing=own), np.random.default_rng(0)))
            start = stop
        found.append(np.concatenate(parts))
    return logit(np.clip(np.stack(found), 1e-7, 1 - 1e-7))


def _dropping(model: ClickModel, scenario: Scenario, schema: Schema) -> ClickModel:
    """Return the click model whose fields also go missing as the scenario drops them."""
    if scenario.uses_patterns:
        raise InputError(f"{scenario.name}: the best is known where fields are dropped independently")
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
