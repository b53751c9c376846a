"""Fields that look wrong: that know the label, never vary, are hardly ever there, or name each row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asymdiffrec.datasets.statistics.field_summary import Look

FIRST = 200_000
"""Training rows, the first ones, by which it is judged whether a field tells the label"""
CELLS = 25_000_000
"""Values that are kept of these rows: fewer rows where there are many fields"""
ERRORS = 0.01
"""Guesses that may be wrong, a row of the rarer label, of a field that tells the label"""
RARER = 50
"""Rows of the rarer label that it takes to judge"""
MISSING = 0.99
OWN = 0.99
"""Distinct ids a row that has one, from where on an id names its row; where they are many their number is estimated"""
ROWS = 1000
"""Rows that it takes to see that an id names its row"""


def oddity(report: Mapping[str, Any], rows: int) -> str | None:
    """What is odd about a field, by its entry in `profile.json`, or None."""
    present = round((1 - report["missing"]) * rows)
    if report["missing"] > MISSING:
        return f"is missing in {report['missing']:.2%} of the training rows"
    if present == rows and (report.get("cardinality") == 1 or ("min" in report and report["min"] == report["max"])):
        return "has the same value in every training row"
    if report["type"] == "id" and present >= ROWS and report["cardinality"] >= OWN * present:
        return "has another id in each training row, so that nothing can be learned from it"
    return None


class FirstRows:
    """The first training rows: whether a field tells the label there."""

    def __init__(self, names: list[str]) -> None:
        self._room = min(FIRST, CELLS // len(names))
        self._labels: list[np.ndarray] = []
        self._fields: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}

    def add(self, labels: np.ndarray, looks: Mapping[str, Look]) -> None:
        """Take in as many rows of a row group as there is room for."""
        if self._room:
            first = slice(self._room)
            self._labels.append(labels[first])
            for name, look in looks.items():
                self._fields[name].append((look.values[first].copy(), look.missing[first]))
            self._room -= len(labels[first])

    def telling(self, name: str) -> str | None:
        """How a field tells the label all by itself, or None where it does not."""
        values, missing = (np.concatenate(parts) for parts in zip(*self._fields[name], strict=True))
        return telling(values, missing, np.concatenate(self._labels))


def telling(values: np.ndarray, missing: np.ndarray, labels: np.ndarray) -> str | None:
    """How a field tells the label all by itself, or None where it does not.

    `values` [S] are numbers in float64, or int64 that are equal where the ids are; those that are `missing` [S] bool do
    not count. `labels` [S] are 0 or 1. A label is guessed from the other rows with the same value, so that a value
    that is seen once tells nothing, however many such values there are.
    """
    if _guesses(missing.astype(np.int64), labels):
        return "gives the label away by whether it is missing; was it recorded after the label?"
    present, known = values[~missing], labels[~missing]
    _, rank = np.unique(present, return_inverse=True)
    if _guesses(rank, known):
        return "gives the label away by its value alone; is it a copy of the label, or recorded after it?"
    if values.dtype == np.float64 and _separates(rank, known):
        return "gives the label away by whether it is small or large; was it recorded after the label?"
    return None


def _guesses(group: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the majority of the other rows of a row's group [S] has the row's label, for all but a few rows."""
    others = np.bincount(group)[group] - 1
    ones = np.bincount(group, labels)[group] - labels
    seen = others > 0
    wrong = (2 * ones == others) | ((2 * ones > others) != (labels == 1))
    rarer = _rarer(labels[seen])
    return 2 * seen.sum() > len(group) and rarer >= RARER and wrong[seen].sum() <= ERRORS * rarer


def _separates(rank: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the AUC of a number, given by its rank [S], is all but 0 or 1."""
    if _rarer(labels) < RARER:
        return False
    ones = np.bincount(rank, labels)
    zeros = np.bincount(rank) - ones
    auc = np.dot(ones, np.cumsum(zeros) - zeros / 2) / (ones.sum() * zeros.sum())
    return min(auc, 1 - auc) < ERRORS / 10


def _rarer(labels: np.ndarray) -> int:
    """Rows [S] of the rarer label."""
    ones = int(labels.sum())
    return min(ones, len(labels) - ones)
