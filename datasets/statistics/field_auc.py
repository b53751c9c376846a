"""The area under the ROC curve of a numpy array of scores."""

from __future__ import annotations

import numpy as np
from scipy.stats import mannwhitneyu


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the AUC of `scores` [R] for `labels` [R]. A pair of equal scores counts one half.

    Labels are 0 or 1, and both must occur.

    This is the Mann-Whitney U statistic divided by the number of pairs (Mann and Whitney 1947).

    >>> roc_auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.5, 0.5]))
    0.875
    """
    positive = labels == 1
    pairs = int(positive.sum()) * int((~positive).sum())
    return float(mannwhitneyu(scores[positive], scores[~positive], method="asymptotic").statistic / pairs)
