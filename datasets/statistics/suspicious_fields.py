"""Find suspicious fields: they leak the label, are constant, are almost always missing, or identify the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asymdiffrec.datasets.statistics.field_auc import roc_auc
from asymdiffrec.datasets.statistics.field_summary import RowGroupSummary

MAX_SAMPLE_ROWS = 200_000
"""Maximum number of training rows in the leakage check; the check uses the first rows"""
MAX_SAMPLE_VALUES = 25_000_000
"""Maximum number of values in the leakage check, rows times fields; with many fields it uses fewer rows"""
MAX_WRONG_SHARE = 0.01
"""Maximum number of wrong predictions of a leaking field, divided by the number of rows with the rarer label"""
MIN_RARER_ROWS = 50
"""Minimum number of rows with the rarer label in the leakage check"""
MAX_AUC_GAP = 0.001
"""A numeric field leaks the label if its AUC is closer than this to 0 or 1"""
MAX_MISSING_SHARE = 0.99
MIN_UNIQUE_SHARE = 0.99
"""A field identifies its row if it has at least this number of distinct ids per row with an id"""
MIN_UNIQUE_ROWS = 1000
"""Minimum number of rows with an id to decide that a field identifies its row"""


def find_suspicious(report: Mapping[str, Any], rows: int) -> str | None:
    """Return why a field is suspicious, or None if it is not.

    report: the entry of the field in `profile.json`.
    rows: number of training rows.
    """
    present = round((1 - report["missing"]) * rows)
    if report["missing"] > MAX_MISSING_SHARE:
        return f"is missing in {report['missing']:.2%} of the training rows"
    if present == rows and (report.get("cardinality") == 1 or ("min" in report and report["min"] == report["max"])):
        return "has the same value in every training row"
    if report["type"] == "id" and present >= MIN_UNIQUE_ROWS and report["cardinality"] >= MIN_UNIQUE_SHARE * present:
        return "has a different id in nearly every training row, so a model cannot learn from it"
    return None


class LeakageSample:
    """The first training rows, which are used to check the fields for label leakage."""

    def __init__(self, names: list[str]) -> None:
        self._remaining = min(MAX_SAMPLE_ROWS, MAX_SAMPLE_VALUES // len(names))
        self._labels: list[np.ndarray] = []
        self._fields: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}

    def add(self, labels: np.ndarray, summaries: Mapping[str, RowGroupSummary]) -> None:
        """Add the rows of a row group, until the sample is full."""
        if self._remaining:
            first = slice(self._remaining)
            self._labels.append(labels[first])
            for name, summary in summaries.items():
                self._fields[name].append((summary.values[first].copy(), summary.missing[first]))
            self._remaining -= len(labels[first])

    def find_leak(self, name: str) -> str | None:
        """Return how a field alone reveals the label, or None if it does not."""
        values, missing = (np.concatenate(parts) for parts in zip(*self._fields[name], strict=True))
        return find_leak(values, missing, np.concatenate(self._labels))


def find_leak(values: np.ndarray, missing: np.ndarray, labels: np.ndarray) -> str | None:
    """Return how a field alone reveals the label, or None if it does not.

    values: [S] numbers as float64, or ids as int64 codes; equal ids have equal codes.
    missing: [S] bool, True where the field is missing; the values of these rows are ignored.
    labels: [S] 0 or 1.

    A label is predicted from the other rows with the same value, so a value that occurs once reveals nothing.
    """
    if _predicts(missing.astype(np.int64), labels):
        return "reveals the label by being missing; it may have been recorded after the label"
    present, present_labels = values[~missing], labels[~missing]
    _, rank = np.unique(present, return_inverse=True)
    if _predicts(rank, present_labels):
        return "reveals the label by its value; it may be a copy of the label, or recorded after it"
    if values.dtype == np.float64 and _separates(rank, present_labels):
        return "reveals the label by being small or large; it may have been recorded after the label"
    return None


def _predicts(group: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether the groups predict the labels.

    group, labels: [S], the group and the label of each row. The prediction for a row is the majority label of the other
    rows in its group. The groups predict the labels if nearly all predictions are right, see MAX_WRONG_SHARE.
    """
    others = np.bincount(group)[group] - 1
    ones = np.bincount(group, labels)[group] - labels
    has_others = others > 0
    wrong = (2 * ones == others) | ((2 * ones > others) != (labels == 1))
    rarer = _rows_of_rarer_label(labels[has_others])
    covers_most_rows = 2 * has_others.sum() > len(group)
    return covers_most_rows and rarer >= MIN_RARER_ROWS and wrong[has_others].sum() <= MAX_WRONG_SHARE * rarer


def _separates(rank: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether the AUC of a numeric field is nearly 0 or 1; `rank` [S] is the rank of each value."""
    if _rows_of_rarer_label(labels) < MIN_RARER_ROWS:
        return False
    auc = roc_auc(labels, rank)
    return min(auc, 1 - auc) < MAX_AUC_GAP


def _rows_of_rarer_label(labels: np.ndarray) -> int:
    """Return the number of rows [S] with the rarer label."""
    ones = int(labels.sum())
    return min(ones, len(labels) - ones)
