"""A histogram of the values of a numeric field, in bounded memory. The knots are chosen from it."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

MAX_VALUES = 4096
"""Maximum number of distinct values for which a histogram is exact"""


class Histogram(NamedTuple):
    """Distinct values [V] float64 in ascending order, and the number of rows that each represents, [V] int64.

    Each value occurs in the data. If the data have more than MAX_VALUES distinct values, a value can also represent
    rare values close to it. The knots need a separate entry for each frequent value; np.histogram, which has fixed
    bins, and quantile sketches do not give that.
    """

    values: np.ndarray
    rows: np.ndarray

    @classmethod
    def empty(cls) -> Self:
        """Return a histogram without rows."""
        return cls(np.empty(0), np.empty(0, np.int64))

    @classmethod
    def from_values(cls, values: np.ndarray) -> Self:
        """Return the histogram of values [R] without NaN."""
        return cls(*np.unique(values, return_counts=True)).reduce(MAX_VALUES)

    def merge(self, other: Histogram) -> Self:
        """Return the histogram of the rows of both histograms."""
        values, positions = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        rows = np.bincount(positions, np.concatenate([self.rows, other.rows]), len(values))
        return type(self)(values, rows.astype(np.int64)).reduce(MAX_VALUES)

    def reduce(self, max_values: int) -> Self:
        """Return a histogram with at most `max_values` values.

        Each frequent value keeps a separate entry. The other values are merged into groups with equal numbers of rows,
        like the bins of a feature in LightGBM (Ke et al. 2017).
        """
        if len(self.values) <= max_values:
            return self
        frequent = self.rows * max_values >= self.rows.sum()
        if frequent.sum() + 2 < max_values:
            frequent[[0, -1]] = True  # the smallest and the largest value keep separate entries too
        rare, rows = self.values[~frequent], self.rows[~frequent]
        groups, cumulated = max_values - int(frequent.sum()), rows.cumsum()
        group = (cumulated - rows) * groups // cumulated[-1]
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        ends = np.append(starts[1:], len(rare)) - 1
        group_rows = np.diff(cumulated[ends], prepend=0)
        middle = np.searchsorted(cumulated, cumulated[ends] - group_rows / 2)
        values = np.concatenate([self.values[frequent], rare[middle]])
        order = values.argsort()
        return type(self)(values[order], np.concatenate([self.rows[frequent], group_rows])[order])

    def knots(self, max_bins: int) -> list[float]:
        """Return the edges of at most `max_bins` bins: all values, or else the frequent values and quantiles."""
        knots: list[float] = self.reduce(max_bins + 1).values.tolist()
        return knots
