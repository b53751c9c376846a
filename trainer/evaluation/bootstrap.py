"""Compare the metrics of models on the same samples, with bootstrap confidence intervals of the differences.

Each replicate draws U of U users with replacement, and n - 1 of n seeds with replacement. With n draws the variance of
a mean over seeds would be too small by the factor (n - 1) / n. All models and scenarios use the same draws. If there
are more than `MAX_USER_GROUPS` users, random groups of users are drawn instead of single users.

The intervals of one metric are simultaneous: with 95 % probability all of them, for all models and scenarios, contain
the true difference. Each interval is centred on the observed difference. Its half width is the standard error times a
common factor: the 95 % quantile, over replicates, of the largest standardised deviation (single-step max-t; Westfall
and Young, 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from asymdiffrec.trainer.evaluation.auc import auc_areas, aucs_by_user
from asymdiffrec.trainer.metrics import METRICS, Sums, compute_metrics

MAX_USER_GROUPS = 20_000
"""Maximum number of user groups: the time of a replicate grows with it"""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Samples:
    """R samples that models scored."""

    label: np.ndarray
    """[R]"""
    weight: np.ndarray
    """[R]"""
    user: np.ndarray | None
    """[R] int64; None: single samples are drawn instead of users"""
    period: np.ndarray | None = None
    """[R] if a separate model scored each period, else None. The scores of different models cannot be ranked together,
    so a metric is computed in each period and then averaged with the number of samples as weights."""


class ModelScores(NamedTuple):
    """The scores of one trained model for R samples under K scenarios."""

    logits: np.ndarray
    """[K, R]"""
    counted: np.ndarray
    """[K, R] bool: whether a scenario counts the sample"""


class Difference(NamedTuple):
    """The difference of a metric from the reference model, averaged over seeds, with its interval."""

    value: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """True if the interval does not contain 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Observed and replicated metrics by the name of the model. The M metrics are in the order of `METRICS`."""

    values: dict[str, np.ndarray]
    """[S, K, M] for S seeds and K scenarios; NaN where a metric is undefined"""
    replicates: dict[str, np.ndarray]
    """[K, M, D] for D draws: means over the drawn seeds"""

    def differences(self, reference: str) -> dict[str, list[list[Difference]]]:
        """Return the differences of each other model from the reference model, as lists [K][M]."""
        names = [name for name in self.values if name != reference]
        if not names:
            return {}
        observed = np.stack([(self.values[name] - self.values[reference]).mean(axis=0) for name in names])
        drawn = np.stack([self.replicates[name] - self.replicates[reference] for name in names])
        error = drawn.std(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.abs(drawn - drawn.mean(axis=-1, keepdims=True)) / error
        largest = np.nanmax(np.nan_to_num(deviation), axis=(0, 1))  # [M, D]
        half = np.quantile(largest, CONFIDENCE, axis=-1)[None, None] * error[..., 0]
        low, high = observed - half, observed + half
        return {
            name: [
                [Difference(*map(float, cell)) for cell in zip(*row, strict=True)]
                for row in zip(observed[index], low[index], high[index], strict=True)
            ]
            for index, name in enumerate(names)
        }


def compare(
    models: Mapping[str, Sequence[ModelScores]],
    samples: Samples,
    draws: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Comparison:
    """Return the metrics of each model and seed, and `draws` bootstrap replicates of the metrics.

    `models` has the scores of each model by name, one entry for each seed; all models have the same number of seeds.
    `advance` is called after each model and seed.
    """
    (num_seeds,) = {len(scores_by_seed) for scores_by_seed in models.values()}
    everyone = samples.user if samples.user is not None else np.arange(len(samples.label))
    users, user = np.unique(everyone, return_inverse=True)
    rng = np.random.default_rng(seed)
    num_groups = min(len(users), MAX_USER_GROUPS)
    group = rng.permutation(len(users)) % num_groups
    times = np.ones((1 + draws, num_groups))  # the first row is the observed data: every group once
    for row in times[1:]:
        row[:] = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
    seed_weights = np.full((draws, num_seeds), 1.0 / num_seeds)
    if num_seeds > 1:
        drawn_seeds = rng.integers(num_seeds, size=(draws, num_seeds - 1))
        seed_weights = np.stack([(drawn_seeds == number).mean(axis=1) for number in range(num_seeds)], axis=1)
    values, replicates = {}, {}
    for name, scores_by_seed in models.items():
        by_seed = []
        for scores in scores_by_seed:
            by_scenario = [
                _metrics_over_periods(logits, samples, counted, user, group, times)
                for logits, counted in zip(scores.logits, scores.counted, strict=True)
            ]
            by_seed.append(np.stack(by_scenario))  # [K, M, 1 + D]
            advance()
        metrics = np.stack(by_seed)
        values[name] = metrics[..., 0]
        replicates[name] = np.einsum("skmd,ds->kmd", metrics[..., 1:], seed_weights)
    return Comparison(values, replicates)


def _metrics_over_periods(
    logits: np.ndarray, samples: Samples, counted: np.ndarray, user: np.ndarray, group: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Return the metrics [M, 1 + D] of the counted samples, averaged over periods."""
    if samples.period is None:
        return _metrics(logits[counted], samples, counted, user, group, times)
    parts = [counted & (samples.period == period) for period in np.unique(samples.period)]
    by_period = [_metrics(logits[part], samples, part, user, group, times) for part in parts]
    means: np.ndarray = np.average(by_period, axis=0, weights=[part.sum() for part in parts])
    return means


def _metrics(
    logit: np.ndarray, samples: Samples, counted: np.ndarray, user: np.ndarray, group: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Return the metrics [M, 1 + D] of the counted samples, whose logits are `logit`.

    `user` [R] numbers the users from 0, `group` [U] is the group of each user, and `times` [1 + D, G] says how often
    each group was drawn.
    """
    x, y, w, user = logit.astype(np.float64), samples.label[counted], samples.weight[counted], user[counted]
    if not len(x):
        return np.full((len(METRICS), len(times)), np.nan)

    def sum_over_draws(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return times @ np.bincount(groups, values, times.shape[1])

    sample_group = group[user]
    user_auc = user_weight = np.zeros(len(times))
    if samples.user is not None:
        users, auc, auc_weight = aucs_by_user(logit, y, w, user)
        user_auc = sum_over_draws(auc * auc_weight, group[users])
        user_weight = sum_over_draws(auc_weight, group[users])
    auc_area, pairs = auc_areas(logit, y, w, sample_group, times)
    sums = Sums(
        positive=sum_over_draws(w * y, sample_group),
        negative=sum_over_draws(w * (1 - y), sample_group),
        log_loss=sum_over_draws(w * np.logaddexp(0, (1 - 2 * y) * x), sample_group),
        probability=sum_over_draws(w * np.exp(-np.logaddexp(0, -x)), sample_group),
        auc_area=auc_area,
        auc_weight=pairs,
        user_auc=user_auc,
        user_weight=user_weight,
    )
    return np.stack(list(compute_metrics(sums).values()))
