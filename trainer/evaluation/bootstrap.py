"""Differences between models that judge the same samples, with intervals: a bootstrap over users and seeds.

A replicate draws as many users as there are, with replacement (of very many, groups of them), and of n seeds n - 1, so
that the variance of its mean is not too small by (n - 1) / n; every model and scenario sees the same draws. Intervals
of one metric hold together with 95 % probability for all models and scenarios: they are as wide as the largest of their
deviations, each over its own standard error, asks for (single-step max-t; Westfall and Young, 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from asymdiffrec.datasets.decoding.native import compiled
from asymdiffrec.trainer.evaluation.accumulator import ranked_pairs
from asymdiffrec.trainer.evaluation.sorted_runs import ROW, merge, starts
from asymdiffrec.trainer.metrics import METRICS, Sums, compute_metrics

GROUPS = 20_000
"""Of users that are drawn together, at most: a draw costs as much as there are of them"""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Samples:
    """R samples that models are judged on."""

    label: np.ndarray
    weight: np.ndarray
    user: np.ndarray | None
    """[R] int64; without users each sample is drawn by itself"""
    period: np.ndarray | None = None
    """[R]; where models of other periods judged other samples: a metric is the mean of its values in each, weighted by
    their samples, for scores of several models are not in one order"""


class Judged(NamedTuple):
    """What one trained model says of the samples under K scenarios."""

    logits: np.ndarray
    """[K, R]"""
    counts: np.ndarray
    """[K, R] bool: which of the samples are a scenario's"""


class Difference(NamedTuple):
    """Of a metric from that of the reference, mean over seeds, and where it lies with the others."""

    value: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    values: dict[str, np.ndarray]
    """Of each model, [seeds, K, metrics]; NaN where a metric is undefined"""
    replicates: dict[str, np.ndarray]
    """[K, metrics, draws], means over the drawn seeds"""

    def differences(self, reference: str) -> dict[str, list[list[Difference]]]:
        """Of each other model from the reference, [K][metrics]."""
        names = [name for name in self.values if name != reference]
        if not names:
            return {}
        observed = np.stack([(self.values[name] - self.values[reference]).mean(axis=0) for name in names])
        drawn = np.stack([self.replicates[name] - self.replicates[reference] for name in names])
        error = drawn.std(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.abs(drawn - drawn.mean(axis=-1, keepdims=True)) / error
        widest = np.nanmax(np.nan_to_num(deviation), axis=(0, 1))  # [metrics, draws]
        half = np.quantile(widest, CONFIDENCE, axis=-1)[None, None] * error[..., 0]
        return {
            name: [[Difference(*map(float, cell)) for cell in zip(*row, strict=True)] for row in zip(*own, strict=True)]
            for name, *own in zip(names, observed, observed - half, observed + half, strict=True)
        }


def compare(
    models: Mapping[str, Sequence[Judged]],
    samples: Samples,
    draws: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Comparison:
    """Metrics of each model, by its seeds, and `draws` replicates of them; all models have as many seeds."""
    (seeds,) = {len(runs) for runs in models.values()}
    everyone = samples.user if samples.user is not None else np.arange(len(samples.label))
    users, user = np.unique(everyone, return_inverse=True)
    rng = np.random.default_rng(seed)
    size = min(len(users), GROUPS)
    group = rng.permutation(len(users)) % size
    times = np.ones((1 + draws, size))  # the first is no draw: everyone once
    for row in times[1:]:
        row[:] = np.bincount(rng.integers(size, size=size), minlength=size)
    shares = np.full((draws, seeds), 1.0 / seeds)
    if seeds > 1:
        drawn = rng.integers(seeds, size=(draws, seeds - 1))
        shares = np.stack([(drawn == one).mean(axis=1) for one in range(seeds)], axis=1)
    values, replicates = {}, {}
    for name, runs in models.items():
        by_seed = []
        for run in runs:
            found = [
                _of_periods(logits, samples, counts, user, group, times)
                for logits, counts in zip(run.logits, run.counts, strict=True)
            ]
            by_seed.append(np.stack(found))  # [K, metrics, 1 + draws]
            advance()
        together = np.stack(by_seed)
        values[name] = together[..., 0]
        replicates[name] = np.einsum("skmd,ds->kmd", together[..., 1:], shares)
    return Comparison(values, replicates)


def _of_periods(
    logits: np.ndarray, samples: Samples, counts: np.ndarray, user: np.ndarray, group: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """[metrics, 1 + draws]"""
    if samples.period is None:
        return _metrics(logits[counts], samples, counts, user, group, times)
    parts = [counts & (samples.period == period) for period in np.unique(samples.period)]
    found = [_metrics(logits[part], samples, part, user, group, times) for part in parts]
    means: np.ndarray = np.average(found, axis=0, weights=[part.sum() for part in parts])
    return means


def _metrics(
    logit: np.ndarray, samples: Samples, counts: np.ndarray, user: np.ndarray, group: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """[metrics, 1 + draws]; `user` [R] are numbered from 0 on, `group` [users] is what each is drawn with, and `times`
    [1 + draws, groups] how often."""
    x, y, w, user = logit.astype(np.float64), samples.label[counts], samples.weight[counts], user[counts]
    if not len(x):
        return np.full((len(METRICS), len(times)), np.nan)

    def summed(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return times @ np.bincount(groups, values, times.shape[1])

    groups = group[user]
    user_auc = user_weight = np.zeros(len(times))
    if samples.user is not None:
        users, auc, auc_weight = _aucs_by_user(logit, y, w, user)
        user_auc, user_weight = summed(auc * auc_weight, group[users]), summed(auc_weight, group[users])
    sums = Sums(
        summed(w * y, groups),
        summed(w * (1 - y), groups),
        summed(w * np.logaddexp(0, (1 - 2 * y) * x), groups),
        summed(w * np.exp(-np.logaddexp(0, -x)), groups),
        *_auc(logit, y, w, groups, times),
        user_auc,
        user_weight,
    )
    return np.stack(list(compute_metrics(sums).values()))


def _aucs_by_user(logit: np.ndarray, y: np.ndarray, w: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the users with labels of both kinds: which they are, the AUC of each, and the weight of its samples."""
    rows = np.empty(len(logit), ROW)
    rows["user"], rows["score"], rows["positive"], rows["negative"] = user, logit, w * y, w * (1 - y)
    positive, negative, pairs = np.concatenate(list(ranked_pairs([merge(rows)])), axis=1)
    both = (positive > 0) & (negative > 0)
    return np.unique(user)[both], pairs[both] / (positive * negative)[both], (positive + negative)[both]


def _auc(
    logit: np.ndarray, y: np.ndarray, w: np.ndarray, group: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the pairs ranked right, ties one half, and of all pairs, each [1 + draws]."""
    order = np.argsort(logit)
    first = np.zeros(len(order), np.bool_)
    first[starts(logit[order])] = True
    areas, pairs = np.empty(len(times)), np.empty(len(times))
    positive, negative = (w * y)[order].astype(np.float64), (w * (1 - y))[order].astype(np.float64)
    _areas(first, group[order], positive, negative, times, areas, pairs)
    return areas, pairs


@compiled
def _areas(
    first: np.ndarray,
    group: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
    times: np.ndarray,
    areas: np.ndarray,
    pairs: np.ndarray,
) -> None:
    """Write `areas` and `pairs` of each row of `times`. Samples are in order of score; `first` [R] is true at the first
    sample of each score."""
    for draw in range(len(times)):
        area = below = total = up = down = 0.0
        for index in range(len(first)):
            if first[index]:
                area += up * (below + down / 2)
                below += down
                up = down = 0.0
            count = times[draw, group[index]]
            up += count * positive[index]
            total += count * positive[index]
            down += count * negative[index]
        area += up * (below + down / 2)
        below += down
        areas[draw], pairs[draw] = area, total * below
