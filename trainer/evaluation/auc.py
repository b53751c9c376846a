"""The sums behind AUC and GAUC: pairs of a positive and a negative sample in which the positive scores higher.

AUC is the weight of these pairs divided by the weight of all pairs; a tie counts one half (Hanley and McNeil 1982).
Evaluation sums the pairs per user from sorted rows; the bootstrap sums them for many draws of users at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from asymdiffrec.datasets.decoding.native import compiled
from asymdiffrec.trainer.evaluation.sorted_runs import ROW, merge, starts


def ranked_pairs(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield three sums per user, as arrays [3, U] for U users at a time. Each user occurs once.

    The sums are the weight of the positives, the weight of the negatives, and the weight of the (positive, negative)
    pairs in which the positive scores higher; a tie counts one half. `parts` are consecutive, non-empty slices of rows
    sorted by (user, score).
    """
    last_user, last = None, np.empty((3, 0))
    for rows in parts:
        first = starts(rows["user"])
        positive, negative = (np.add.reduceat(rows[name], first) for name in ("positive", "negative"))
        # The running sum restarts at 0 for each user. So it stays small, and so does its rounding error.
        steps = rows["negative"].copy()
        steps[first[1:]] -= negative[:-1]
        below = np.cumsum(steps) - rows["negative"] / 2
        sums = np.stack([positive, negative, np.add.reduceat(rows["positive"] * below, first)])
        if rows["user"][0] == last_user:  # the user's rows in earlier slices have lower scores
            sums[:, :1] += last + np.array([[0], [0], [1]]) * positive[0] * last[1]
        else:
            yield last
        yield sums[:, :-1]
        last_user, last = rows["user"][-1], sums[:, -1:]
    yield last


def aucs_by_user(
    logit: np.ndarray, y: np.ndarray, w: np.ndarray, user: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the users with samples of both classes, their AUCs, and the weights of their samples."""
    rows = np.empty(len(logit), ROW)
    rows["user"], rows["score"], rows["positive"], rows["negative"] = user, logit, w * y, w * (1 - y)
    positive, negative, pairs = np.concatenate(list(ranked_pairs([merge(rows)])), axis=1)
    both = (positive > 0) & (negative > 0)
    return np.unique(user)[both], pairs[both] / (positive * negative)[both], (positive + negative)[both]


def auc_areas(
    logit: np.ndarray, y: np.ndarray, w: np.ndarray, group: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return two sums [1 + D] for the rows of `times`: the weight of ranked pairs, and the weight of all pairs.

    A pair is ranked if its positive scores higher; a tie counts one half. `times` [1 + D, G] says how often each group
    was drawn, `group` [R] is the group of each sample.
    """
    order = np.argsort(logit)
    first = np.zeros(len(order), np.bool_)
    first[starts(logit[order])] = True
    areas, pairs = np.empty(len(times)), np.empty(len(times))
    positive, negative = (w * y)[order].astype(np.float64), (w * (1 - y))[order].astype(np.float64)
    _write_areas(first, group[order], positive, negative, times, areas, pairs)
    return areas, pairs


@compiled
def _write_areas(
    first: np.ndarray,
    group: np.ndarray,
    positive: np.ndarray,
    negative: np.ndarray,
    times: np.ndarray,
    areas: np.ndarray,
    pairs: np.ndarray,
) -> None:
    """Write the results of `auc_areas` to `areas` and `pairs`.

    Samples are in order of score; `first` [R] is true at the first sample of each score.
    """
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
