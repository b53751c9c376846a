"""The metrics of an evaluation: a table with the name, heading, direction and formula of each metric.

`METRICS` is the only list of metrics. Evaluation, the bootstrap, the progress lines of a training, `top`, the tables
and pages of `evaluate` and `compare`, and `train.validation.metric` read it, so a new metric needs only a new entry. If
its formula needs a new sum, add a field to `Sums` and fill it in `evaluation/accumulator.py` and
`evaluation/bootstrap.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Value: TypeAlias = np.ndarray
"""Float64: a scalar (shape []) for an evaluation, [D] for D replicates of the bootstrap"""


@dataclass(frozen=True)
class Sums:
    """Weighted sums over samples, from which every metric is computed. All fields have the same shape, [] or [D]."""

    positive: Value
    """Weights of the positive samples"""
    negative: Value
    """Weights of the negative samples"""
    log_loss: Value
    """Weight times -log of the probability that the model gives to the label"""
    probability: Value
    """Weight times predicted probability"""
    auc_area: Value
    auc_weight: Value
    """auc_area / auc_weight is the AUC over all pairs of a positive and a negative sample (Mann-Whitney; a tie counts
    one half); auc_weight is 0 without pairs"""
    user_auc: Value
    """Sum over users with samples of both classes: AUC of the user times weight of the user's samples"""
    user_weight: Value
    """Weight of all samples of these users; 0 without users"""

    @property
    def weight(self) -> Value:
        """Weights of all samples."""
        return self.positive + self.negative


@dataclass(frozen=True)
class Metric:
    """One metric: its texts, which values are better, and its formula."""

    name: str
    """Key in JSON documents and in metrics.jsonl"""
    heading: str
    """Heading in tables and on pages"""
    better: Literal["higher", "lower", "near 1"]
    description: str
    formula: Callable[[Sums], Value]
    """NaN where the metric is undefined"""
    is_drawn: bool = True
    """True if the page of a comparison draws a curve of the metric; the tables on the page contain every metric"""

    @property
    def can_validate(self) -> bool:
        """True if the metric can choose the best step of a training: either higher or lower values are better."""
        return self.better != "near 1"


def ratio(numerator: Value, denominator: Value) -> Value:
    """Return numerator / denominator, NaN where the denominator is 0.

    >>> ratio(np.array([1.0, 1.0]), np.array([4.0, 0.0])).tolist()
    [0.25, nan]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(denominator, 0), np.nan, np.divide(numerator, denominator))


def _base_rate_loss(sums: Sums) -> Value:
    """Return the summed log loss of a model that always predicts the share of positives; NaN with only one class."""
    with np.errstate(divide="ignore", invalid="ignore"):
        positive = sums.positive * np.log(sums.positive / sums.weight)
        negative = sums.negative * np.log(sums.negative / sums.weight)
    return -(positive + negative)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "auc",
            "AUC",
            "higher",
            "share of (positive, negative) pairs in which the positive sample scores higher; a tie counts one half",
            lambda sums: ratio(sums.auc_area, sums.auc_weight),
        ),
        Metric(
            "gauc",
            "GAUC",
            "higher",
            "AUC within each user, averaged with the weight of the user's samples (UAUC in the paper)",
            lambda sums: ratio(sums.user_auc, sums.user_weight),
        ),
        Metric(
            "log_loss",
            "log loss",
            "lower",
            "mean of -log of the probability given to the label, in nats",
            lambda sums: ratio(sums.log_loss, sums.weight),
        ),
        Metric(
            "normalized_entropy",
            "norm. entropy",
            "lower",
            "log loss divided by the log loss of the base rate (He et al., 2014); below 1 is better than the base rate",
            lambda sums: ratio(sums.log_loss, _base_rate_loss(sums)),
            is_drawn=False,  # the curve of log loss on another scale
        ),
        Metric(
            "calibration",
            "calibration",
            "near 1",
            "sum of predicted probabilities divided by sum of labels",
            lambda sums: ratio(sums.probability, sums.positive),
        ),
    )
}


def compute_metrics(sums: Sums) -> dict[str, Value]:
    """Return every metric by name, in the order of `METRICS`; NaN where a metric is undefined."""
    return {name: metric.formula(sums) for name, metric in METRICS.items()}


def validation_metrics() -> list[str]:
    """Return the names that train.validation.metric can have."""
    return [name for name, metric in METRICS.items() if metric.can_validate]


def require_validation_metric(name: str) -> str:
    """Return `name`. Raises ValueError unless it is a metric that can choose the best step of a training."""
    if name not in validation_metrics():
        raise ValueError(f"found {name!r}; expected one of {', '.join(validation_metrics())}")
    return name
