"""The frequency distribution of the ids of a field. The planner estimates cache hit rates from it."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field

from asymdiffrec.base import Config

MAX_EXACT_COUNT = 8
"""Each count up to this one is a separate class. Larger counts are grouped into two classes per factor of 2"""
MIN_IDS_PER_CLASS = 30
"""Minimum number of sampled ids in the class of the most frequent ids; classes are merged to reach it"""


class Lookups(Config):
    """The frequency distribution of the ids of a field over the training rows.

    >>> lookups = Lookups.from_counts(np.array([1, 1, 6]), distinct=3, rows=10, total=8)
    >>> lookups.repeats, lookups.hot_ids(0.7)
    ([(1.0, 2.0), (6.0, 1.0)], 1)
    """

    per_sample: float = Field(description="mean number of ids per sample; a sample without the field has no ids")
    repeats: list[tuple[float, float]] = Field(
        description="[n, ids]: number of distinct ids that are looked up about n times; estimated if it is large"
    )

    @classmethod
    def from_counts(cls, counts: np.ndarray, distinct: int, rows: int, total: int) -> Self:
        """Return the distribution of a field, estimated from a sample of its distinct ids.

        counts: [C] int64, the counts of a uniform sample of the distinct ids.
        distinct: number of distinct ids.
        rows: number of samples.
        total: number of ids in all samples, with repetitions.

        Most distinct ids are rare, so the sample contains rare ids in the right proportion. The few ids with a large
        share of the look-ups are hardly in the sample. Therefore their class gets `total` minus the look-ups of the
        other classes.
        """
        if not len(counts):
            return cls(per_sample=0.0, repeats=[])
        counts = np.sort(counts)
        octaves = np.floor(2 * np.log2(counts / MAX_EXACT_COUNT))
        classes = np.where(counts <= MAX_EXACT_COUNT, counts, MAX_EXACT_COUNT + 1 + octaves)
        if len(counts) < distinct:
            classes = np.minimum(classes, classes[-min(MIN_IDS_PER_CLASS, len(classes))])
        scale = distinct / len(counts)
        members = [counts[classes == each] for each in np.unique(classes)]
        repeats = [(float(group.mean()), len(group) * scale) for group in members]
        rest = total - sum(count * ids for count, ids in repeats[:-1])
        repeats[-1] = max(rest / repeats[-1][1], float(members[-1][0])), repeats[-1][1]
        return cls(per_sample=total / rows, repeats=[(round(count, 3), round(ids, 3)) for count, ids in repeats])

    def hot_ids(self, share: float) -> int:
        """Return the smallest number of ids that together get the given share of the look-ups."""
        counts, ids = self._most_frequent_first()
        cumulated = np.cumsum(counts * ids)
        if not len(cumulated):
            return 0
        return int(np.ceil(np.interp(share * cumulated[-1], [0.0, *cumulated], [0.0, *np.cumsum(ids)])))

    def expected_distinct(self, lookups: float, excluded: float = 0.0) -> float:
        """Return the expected number of distinct ids in `lookups` look-ups.

        The `excluded` most frequent ids are not counted. An id with a share p of the look-ups occurs in n look-ups with
        probability 1 - (1 - p)^n.
        """
        counts, ids = self._most_frequent_first()
        before = np.cumsum(ids) - ids
        counted = np.clip(before + ids - excluded, 0, ids)
        shares = np.minimum(counts / max((counts * ids).sum(), 1e-300), 1.0)
        with np.errstate(divide="ignore"):
            return float((counted * -np.expm1(lookups * np.log1p(-shares))).sum())

    def _most_frequent_first(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the look-ups per id and the number of ids of each class, the most frequent class first."""
        counts, ids = np.array(sorted(self.repeats, reverse=True), dtype=np.float64).reshape(-1, 2).T
        return counts, ids
