"""The best that any predictor can do on the synthetic click log, given only what was recorded.

The best score is E[p | record]. Populations are finite, so the distribution of a sample's members given its record is
exact: Bayes' rule over all members, in which the pattern of missing fields is evidence like any other.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit
from scipy.stats import rankdata

from asymdiffrec.datasets.prepare.synthetic.world import Log, Population, World, choose

DRAWS = 256
"""Monte Carlo draws of the members a record leaves open: a standard error of at most 0.03 in a probability"""
BLOCK = 512


def observed_probability(world: World, log: Log, rng: np.random.Generator) -> np.ndarray:
    """E[p | record] of each sample, [R]."""
    identified = {
        group: ~np.any([log.missing[field] for field in population.identity], axis=0)
        for group, population in world.groups.items()
    }
    expected = log.probability.copy()
    unsure = np.flatnonzero(~np.all(list(identified.values()), axis=0))
    for start in range(0, len(unsure), BLOCK):
        rows = unsure[start : start + BLOCK]
        drawn = {}
        for group, members in log.members.items():
            drawn[group] = np.repeat(members[rows, None], DRAWS, axis=1)
            open_rows = np.flatnonzero(~identified[group][rows])
            if len(open_rows):
                chances = posterior(world, group, log, rows[open_rows])
                which = np.repeat(np.arange(len(open_rows)), DRAWS)
                drawn[group][open_rows] = choose(chances, which, rng).reshape(-1, DRAWS)
        expected[rows] = expit(world.logit(drawn)).mean(axis=1)
    return expected


def posterior(world: World, group: str, log: Log, rows: np.ndarray) -> np.ndarray:
    """P(member | what was recorded of the group) for R of the log's rows, [R, E]."""
    population = world.groups[group]
    members = log.members[group][rows, None]
    missing = {field: log.missing[field][rows, None] for field in population.missing}
    likelihood = np.ones((len(rows), len(population.share)))
    for field, probability in population.missing.items():
        likelihood *= np.where(missing[field], probability, 1 - probability)
    for field in population.columns:
        code = _codes(population, field)
        likelihood *= missing[field] | (code == code[members])
    if "history" in missing:
        likelihood *= np.where(missing["history"], 1, _history_likelihood(world, log.history[rows])[:, population.kind])
    nothing = np.all(list(missing.values()), axis=0)
    weight = population.share * ((1 - population.dark) * likelihood + population.dark * nothing)
    return weight / weight.sum(axis=1, keepdims=True)


def _history_likelihood(world: World, history: np.ndarray) -> np.ndarray:
    """P(history | segment) up to a factor for each row, [R, SEGMENTS]."""
    logs = np.where(history[:, :, None] >= 0, np.log(world.history).T[history], 0).sum(axis=1)
    return np.exp(logs - logs.max(axis=1, keepdims=True))


def _codes(population: Population, field: str) -> np.ndarray:
    """[E] integers, equal where the members' values are."""
    values = population.columns[field]
    if pa.types.is_list(values.type):
        values = pc.binary_join(values.cast(pa.list_(pa.string())), ",")
    return values.dictionary_encode().indices.to_numpy()


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve from ranks (Mann and Whitney 1947), ties counted as one half."""
    positives = int(label.sum())
    negatives = len(label) - positives
    ranks = rankdata(score)[label == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))
