"""Exact metrics of an evaluation in bounded memory: AUC, GAUC, log loss, normalized entropy, calibration."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation.sorted_runs import ROW, merge, slices, spill, starts


class Metrics:
    """Takes the samples of an evaluation, in any order and any portions, and gives its metrics.

    About `limit` samples are held; more are spilled to `spill_folder`, in files without a name that cannot stay behind.
    As a context manager it lets go of them when an evaluation is interrupted.
    """

    def __init__(self, spill_folder: Path, limit: int) -> None:
        self._folder, self._limit = spill_folder, limit
        self._reset()

    def _reset(self) -> None:
        self._rows = 0
        self._positive = self._negative = self._loss = self._probability = 0.0  # weighted sums
        self._has_users = True
        self._held: list[np.ndarray] = []
        self._held_rows = 0
        self._spilled: defaultdict[str, list[np.ndarray]] = defaultdict(list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reset()

    def update(
        self, logit: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None, user: np.ndarray | None = None
    ) -> None:
        """Adds samples: float32 logits [B], labels [B] in {0, 1}, weights [B] >= 0 (default 1), int64 users [B].

        Raises TrainingError when a logit is NaN or infinite.
        """
        finite = np.isfinite(logit)
        if not finite.all():
            raise TrainingError(f"{(~finite).sum()} of {len(logit)} logits are NaN or infinite: the model has diverged")
        x, y = logit.astype(np.float64), label.astype(np.float64)
        w = np.ones_like(x) if weight is None else weight.astype(np.float64)

        rows = np.empty(len(x), ROW)
        rows["user"] = 0 if user is None else user
        rows["score"] = logit  # not its sigmoid, which is 1 in float32 from 17 on
        rows["positive"], rows["negative"] = w * y, w * (1 - y)

        self._rows += len(rows)
        self._positive += rows["positive"].sum()
        self._negative += rows["negative"].sum()
        self._loss += np.sum(w * np.logaddexp(0, (1 - 2 * y) * x))
        self._probability += np.sum(w * np.exp(-np.logaddexp(0, -x)))
        self._has_users &= user is not None

        self._held.append(rows)
        self._held_rows += len(rows)
        if self._held_rows >= self._limit:
            for order, run in self._sorted():
                self._spilled[order].append(spill(run, self._folder))

    def _sorted(self) -> Iterator[tuple[str, np.ndarray]]:
        """Takes what is held, as one run by (user, score) and one by score alone."""
        rows = np.concatenate([np.empty(0, ROW), *self._held])
        self._held, self._held_rows = [], 0
        if self._has_users:
            yield "by user", merge(rows)
        rows["user"] = 0
        yield "overall", merge(rows)

    def compute(self) -> dict[str, float | None]:
        """Metrics of all samples since the last call, in which their weights count everywhere; then starts anew.

        - `rows`: the number of samples.
        - `auc`: of all pairs of a positive and a negative sample, the share, by weight, whose positive scores higher;
          ties count one half (Mann-Whitney).
        - `gauc`: the AUC within each user, averaged over users by the weight of their samples. `gauc_users` are those
          with positives and with negatives of more than zero weight; the others, `gauc_users_left_out`, do not count.
        - `log_loss`: mean of -log of the probability given to the label, in nats.
        - `normalized_entropy`: log loss over the entropy of the base rate (He et al., 2014): below 1 is better than it.
        - `calibration`: sum of predicted probabilities over sum of labels.

        None where undefined: AUC, GAUC and normalized entropy without both classes, calibration without positives, log
        loss without samples of weight, GAUC also unless every sample came with its user.
        """
        means = {order: _mean_auc(slices([*self._spilled[order], run], self._limit)) for order, run in self._sorted()}
        auc, _, _ = means["overall"]
        gauc, users, left_out = means.get("by user", (None, 0, 0))
        weights = np.array([self._positive, self._negative])
        rates = weights / weights.sum() if weights.all() else np.ones(2)
        result = {
            "rows": self._rows,
            "auc": auc,
            "gauc": gauc,
            "gauc_users": users,
            "gauc_users_left_out": left_out,
            "log_loss": _ratio(self._loss, weights.sum()),
            "normalized_entropy": _ratio(self._loss, -np.sum(weights * np.log(rates))),
            "calibration": _ratio(self._probability, self._positive),
        }
        self._reset()
        return result


def _ratio(numerator: float, denominator: float) -> float | None:
    return float(numerator / denominator) if denominator else None


def _mean_auc(parts: Iterable[np.ndarray]) -> tuple[float | None, int, int]:
    """Mean AUC of the users of both classes, by their weight; how many they are; how many users are of one class."""
    area = weight = 0.0
    users = counted = 0
    for positive, negative, pairs in by_user(parts):
        both = (positive > 0) & (negative > 0)
        users += len(both)
        counted += int(both.sum())
        area += np.sum(((positive + negative) * pairs)[both] / (positive * negative)[both])
        weight += np.sum((positive + negative)[both])
    return _ratio(area, weight), counted, users - counted


def by_user(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """[3, U] for some users at a time, each user once: weight of positives, of negatives, and of pairs ranked right."""
    last_user, last = None, np.empty((3, 0))
    for rows in parts:
        first = starts(rows["user"])
        positive, negative = (np.add.reduceat(rows[name], first) for name in ("positive", "negative"))
        # A running sum that goes back to 0 where a user starts stays small, and so does its rounding.
        steps = rows["negative"].copy()
        steps[first[1:]] -= negative[:-1]
        below = np.cumsum(steps) - rows["negative"] / 2
        sums = np.stack([positive, negative, np.add.reduceat(rows["positive"] * below, first)])
        if rows["user"][0] == last_user:  # all its rows in the slices before have lower scores
            sums[:, :1] += last + np.array([[0], [0], [1]]) * positive[0] * last[1]
        else:
            yield last
        yield sums[:, :-1]
        last_user, last = rows["user"][-1], sums[:, -1:]
    yield last
