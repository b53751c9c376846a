"""Compute the optimal scores of the synthetic click log: no model that sees only the recorded fields has a higher AUC.

The optimal score of a sample is E[p | recorded fields]; p is the true click probability. Populations are finite, so
Bayes' rule over all members gives the exact posterior of the user, item and situation of a sample. The posterior also
uses the information which fields are missing.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from asymdiffrec.datasets.prepare.synthetic.click_model import ClickLog, ClickModel, Population, draw_categories

DRAWS = 256
"""Monte Carlo draws per sample, if the recorded fields do not identify its user, item or situation. The standard error
of a probability is at most 0.03"""
BLOCK_ROWS = 512


def optimal_scores(model: ClickModel, log: ClickLog, rng: np.random.Generator) -> np.ndarray:
    """Return E[p | recorded fields] of each sample, [R]."""
    identified = {
        group: ~np.any([log.missing[field] for field in population.identifying_fields], axis=0)
        for group, population in model.groups.items()
    }
    scores = log.probability.copy()
    uncertain = np.flatnonzero(~np.all(list(identified.values()), axis=0))
    for start in range(0, len(uncertain), BLOCK_ROWS):
        rows = uncertain[start : start + BLOCK_ROWS]
        drawn = {}
        for group, members in log.members.items():
            drawn[group] = np.repeat(members[rows, None], DRAWS, axis=1)
            unidentified = np.flatnonzero(~identified[group][rows])
            if len(unidentified):
                posterior = member_posterior(model, group, log, rows[unidentified])
                which = np.repeat(np.arange(len(unidentified)), DRAWS)
                drawn[group][unidentified] = draw_categories(posterior, which, rng).reshape(-1, DRAWS)
        scores[rows] = expit(model.logit(drawn)).mean(axis=1)
    return scores


def member_posterior(model: ClickModel, group: str, log: ClickLog, rows: np.ndarray) -> np.ndarray:
    """Return P(member | recorded fields of the group) for R rows of the log, [R, E]."""
    population = model.groups[group]
    members = log.members[group][rows, None]
    missing = {field: log.missing[field][rows, None] for field in population.missing_probability}
    likelihood = np.ones((len(rows), len(population.probability)))
    for field, probability in population.missing_probability.items():
        likelihood *= np.where(missing[field], probability, 1 - probability)
    for field in population.columns:
        code = _value_codes(population, field)
        likelihood *= missing[field] | (code == code[members])
    if "history" in missing:
        by_segment = _history_likelihood(model, log.history[rows])
        likelihood *= np.where(missing["history"], 1, by_segment[:, population.cluster])
    all_missing = np.all(list(missing.values()), axis=0)
    outage = population.outage_probability
    weight = population.probability * ((1 - outage) * likelihood + outage * all_missing)
    return weight / weight.sum(axis=1, keepdims=True)


def _history_likelihood(model: ClickModel, history: np.ndarray) -> np.ndarray:
    """Return P(history | segment), except for a constant factor in each row, [R, SEGMENTS]."""
    logs = np.where(history[:, :, None] >= 0, np.log(model.history).T[history], 0).sum(axis=1)
    return np.exp(logs - logs.max(axis=1, keepdims=True))


def _value_codes(population: Population, field: str) -> np.ndarray:
    """Return one integer per member, [E]. Members with the same value of the field have the same integer."""
    values = population.columns[field]
    if pa.types.is_list(values.type):
        values = pc.binary_join(values.cast(pa.list_(pa.string())), ",")
    return values.dictionary_encode().indices.to_numpy()
