"""How the values of a number are spread: some that stand for all, in memory that does not grow with the rows."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

KEPT = 4096
"""Distinct values of which nothing is put together"""


class Distribution(NamedTuple):
    """Distinct values [V] float64, ascending, and how many rows each stands for [V].

    Each is a value of the data and stands for itself and, where there were more than KEPT, for rare ones around it.
    """

    values: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Of values [R] without NaN."""
        return cls(*np.unique(values, return_counts=True)).within(KEPT)

    def and_of(self, other: Distribution) -> Self:
        """The rows of both."""
        values, places = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        rows = np.bincount(places, np.concatenate([self.rows, other.rows]), len(values))
        return type(self)(values, rows.astype(np.int64)).within(KEPT)

    def within(self, most: int) -> Self:
        """At most so many values: a frequent one stays by itself, the others are put together in equal numbers of rows,
        as LightGBM bins a feature (Ke et al., 2017)."""
        if len(self.values) <= most:
            return self
        frequent = self.rows * most >= self.rows.sum()
        if frequent.sum() + 2 < most:
            frequent[[0, -1]] = True  # the least and the largest stay, too
        rare, rows = self.values[~frequent], self.rows[~frequent]
        room, share = most - int(frequent.sum()), rows.cumsum()
        bucket = (share - rows) * room // share[-1]
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        ends = np.append(starts[1:], len(rare)) - 1
        together = np.diff(share[ends], prepend=0)
        middle = np.searchsorted(share, share[ends] - together / 2)
        values = np.concatenate([self.values[frequent], rare[middle]])
        order = values.argsort()
        return type(self)(values[order], np.concatenate([self.rows[frequent], together])[order])

    def knots(self, most: int) -> list[float]:
        """Where a piecewise linear curve through the values may bend: the least value, and at most so many others."""
        found: list[float] = self.within(most + 1).values.tolist()
        return found
