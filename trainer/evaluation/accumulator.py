"""Exact metrics of an evaluation in bounded memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from asymdiffrec.datasets.memory_check import available_memory
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.evaluation.auc import ranked_pairs
from asymdiffrec.trainer.evaluation.sorted_runs import ROW, merge, slices, spill
from asymdiffrec.trainer.metrics import Sums, compute_metrics

PEAK_BYTES_PER_ROW = 160
"""Peak memory of an accumulator per sample, while it sorts; 143 bytes measured, see test_accumulator.py"""
MEMORY_SHARE = 1 / 8
"""Share of the free memory that the accumulators of an evaluation may take"""
MIN_ROWS_IN_MEMORY = 100_000
"""Minimum number of rows in memory, even if little memory is free: fewer rows would make too many files"""


def rows_in_memory() -> int:
    """Return the number of samples that the accumulators of one evaluation may keep in the currently free memory."""
    return max(MIN_ROWS_IN_MEMORY, int(available_memory() * MEMORY_SHARE) // PEAK_BYTES_PER_ROW)


class MetricAccumulator:
    """Accumulator that computes the metrics of samples, added in any order and in batches of any size.

    About `limit` samples stay in memory. Further samples go to `spill_folder`, as sorted runs in files without a name.
    The system frees their space when the accumulator is reset or the process ends, even if it is killed. Use the
    accumulator as a context manager, so that an interrupted evaluation frees the space too.

    >>> with MetricAccumulator(Path("spill"), limit=1000) as accumulator:
    ...     accumulator.update(np.array([-1.0, 2.0], np.float32), np.array([0, 1]))
    ...     accumulator.compute()["auc"]
    1.0
    """

    def __init__(self, spill_folder: Path, limit: int) -> None:
        self._folder, self._limit = spill_folder, limit
        self._reset()

    def _reset(self) -> None:
        self._num_rows = 0
        self._positive = self._negative = self._log_loss = self._probability = 0.0  # weighted sums
        self._has_users = True
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._spilled: defaultdict[str, list[np.ndarray]] = defaultdict(list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reset()

    def update(
        self, logit: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None, user: np.ndarray | None = None
    ) -> None:
        """Add B samples: float32 logits [B], labels [B] in {0, 1}, weights [B] >= 0 (default 1), int64 users [B].

        Raises TrainingError if a logit is NaN or infinite; then no sample of the batch is added.
        """
        finite = np.isfinite(logit)
        if not finite.all():
            raise TrainingError(f"{(~finite).sum()} of {len(logit)} logits are NaN or infinite: the model has diverged")
        x, y = logit.astype(np.float64), label.astype(np.float64)
        w = np.ones_like(x) if weight is None else weight.astype(np.float64)

        rows = np.empty(len(x), ROW)
        rows["user"] = 0 if user is None else user
        rows["score"] = logit  # not the sigmoid: in float32 it is 1 for every logit above 17
        rows["positive"], rows["negative"] = w * y, w * (1 - y)

        self._num_rows += len(rows)
        self._positive += rows["positive"].sum()
        self._negative += rows["negative"].sum()
        self._log_loss += np.sum(w * np.logaddexp(0, (1 - 2 * y) * x))
        self._probability += np.sum(w * np.exp(-np.logaddexp(0, -x)))
        self._has_users &= user is not None

        self._pending.append(rows)
        self._num_pending += len(rows)
        if self._num_pending >= self._limit:
            for order, run in self._sort_pending():
                self._spilled[order].append(spill(run, self._folder))

    def _sort_pending(self) -> Iterator[tuple[str, np.ndarray]]:
        """Clear the pending rows. Yield them as sorted runs: by (user, score) if samples have users, and by score."""
        rows = np.concatenate([np.empty(0, ROW), *self._pending])
        self._pending, self._num_pending = [], 0
        if self._has_users:
            yield "by user", merge(rows)
        rows["user"] = 0
        yield "overall", merge(rows)

    def compute(self) -> dict[str, float | None]:
        """Return the metrics of all samples since the last call, then start again with no samples.

        - `rows`: the number of samples.
        - every metric of `METRICS`, or None where it is undefined: AUC, GAUC and normalised entropy without both
          classes, calibration without positives, log loss without weight, and GAUC unless every sample has a user.
        - `gauc_users`: the number of users that GAUC averages: users with positives and negatives of nonzero weight.
        - `gauc_users_left_out`: the number of the other users.
        """
        areas = {
            order: _sum_aucs(slices([*self._spilled[order], run], self._limit)) for order, run in self._sort_pending()
        }
        overall, by_user = areas["overall"], areas.get("by user", _UserAucs(0.0, 0.0, 0, 0))
        sums = Sums(
            *map(np.asarray, (self._positive, self._negative, self._log_loss, self._probability)),
            *map(np.asarray, (overall.auc, overall.weight, by_user.auc, by_user.weight)),
        )
        values = {name: float(value) for name, value in compute_metrics(sums).items()}
        result = {
            "rows": self._num_rows,
            **{name: None if np.isnan(value) else value for name, value in values.items()},
            "gauc_users": by_user.users,
            "gauc_users_left_out": by_user.left_out,
        }
        self._reset()
        return result


class _UserAucs(NamedTuple):
    auc: float
    """Sum over users with samples of both classes: AUC of the user times weight of the user's samples"""
    weight: float
    """Weight of all samples of these users"""
    users: int
    """The number of these users"""
    left_out: int
    """The number of users with samples of one class only"""


def _sum_aucs(parts: Iterable[np.ndarray]) -> _UserAucs:
    auc = weight = 0.0
    users = counted = 0
    for positive, negative, pairs in ranked_pairs(parts):
        both = (positive > 0) & (negative > 0)
        users += len(both)
        counted += int(both.sum())
        auc += np.sum(((positive + negative) * pairs)[both] / (positive * negative)[both])
        weight += np.sum((positive + negative)[both])
    return _UserAucs(auc, weight, counted, users - counted)
