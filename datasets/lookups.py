"""How often the distinct ids of a field come again: what caches of embedding rows live on."""

from __future__ import annotations

from typing import Any

import numpy as np

from asymdiffrec.datasets.schema import Lookups

EXACT = 8
"""Look-ups up to which ids are counted by their own number; above, two numbers an octave stand for those around them"""
ENOUGH = 30
"""Ids of a sample that speak for a class of ids; the most frequent ids are put together until there are so many"""


def lookups_of(counts: np.ndarray, distinct: int, rows: int, total: int) -> Lookups:
    """The look-ups of a field: `total` in `rows` samples, of `distinct` ids, of a uniform sample of which `counts` [K].

    Rare ids, which are many, are as frequent as in the sample. The few that take much of all look-ups are hardly in it:
    they get what the others leave of the total.
    """
    if not len(counts):
        return Lookups(per_sample=0.0, repeats=[])
    counts = np.sort(counts)
    classes = np.where(counts <= EXACT, counts, EXACT + 1 + np.floor(2 * np.log2(counts / EXACT)))
    if len(counts) < distinct:
        classes = np.minimum(classes, classes[-min(ENOUGH, len(classes))])
    scale = distinct / len(counts)
    alike = [counts[classes == one] for one in np.unique(classes)]
    repeats = [(float(like.mean()), len(like) * scale) for like in alike]
    rest = total - sum(count * ids for count, ids in repeats[:-1])
    repeats[-1] = max(rest / repeats[-1][1], float(alike[-1][0])), repeats[-1][1]
    return Lookups(per_sample=total / rows, repeats=[(round(count, 3), round(ids, 3)) for count, ids in repeats])


def hot_ids(lookups: Lookups, share: float) -> int:
    """How many ids, the most frequent ones, take a share of the look-ups."""
    counts, ids = _descending(lookups)
    reached = np.cumsum(counts * ids)
    if not len(reached):
        return 0
    return int(np.ceil(np.interp(share * reached[-1], [0.0, *reached], [0.0, *np.cumsum(ids)])))


def expected_distinct(lookups: Lookups, drawn: float, without: float = 0.0) -> float:
    """How many distinct ids `drawn` look-ups are of, on average, the `without` most frequent ids not counted.

    An id that takes a share p of the look-ups is among n of them with probability 1 - (1 - p)^n.
    """
    counts, ids = _descending(lookups)
    before = np.cumsum(ids) - ids
    left = np.clip(before + ids - without, 0, ids)
    shares = np.minimum(counts / max((counts * ids).sum(), 1e-300), 1.0)
    with np.errstate(divide="ignore"):
        return float((left * -np.expm1(drawn * np.log1p(-shares))).sum())


def _descending(lookups: Lookups) -> tuple[np.ndarray, np.ndarray]:
    pairs: Any = sorted(lookups.repeats, reverse=True)
    counts, ids = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return counts, ids
