"""Gradient boosted trees (scikit-learn's, with native missing values) on the fields and statistics of the target.

Of an id its count and its smoothed rate of positives in the training rows, out of fold there; of a list their means;
and an id or list of few values as it is. What belongs to a missing field is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logit
from sklearn.ensemble import HistGradientBoostingClassifier

from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.job import Job
from benchmarks.rivals._samples import Bags, Split, missing_under, read

FOLDS = 5
PRIOR = 10.0
"""Rows of the mean rate that a rate is smoothed by"""
FEW = 64
"""Values of a field that are told apart one by one"""
COPIES = 2
"""Of the training rows, with fields dropped"""


def boosting(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """Trained on the rows as they are: a `Rival`."""
    return _scores(job, statistics, scenarios, seed, copies=0)


def boosting_dropped(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """Trained on the rows and on copies of them whose fields are dropped with a probability drawn from U(0, 0.8)."""
    return _scores(job, statistics, scenarios, seed, copies=COPIES)


def _scores(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int, copies: int) -> np.ndarray:
    schema, rng = job.to_schema(statistics), np.random.default_rng(seed)
    splits = {name: read(job, schema, name) for name in ("train", "valid", "test")}
    features = Features(schema, splits["train"], rng)
    train, owner, categorical = features.of(splits["train"], out_of_fold=True)
    valid, *_ = features.of(splits["valid"])
    test, *_ = features.of(splits["test"])

    def multiplied(x: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
        parts = [x]
        for _ in range(copies):
            drop = rng.random(split.missing.shape) < 0.8 * rng.random((len(split), 1))
            parts.append(_without(x, drop, owner))
        return np.concatenate(parts), np.tile(split.label, 1 + copies)

    model = HistGradientBoostingClassifier(
        learning_rate=0.06,
        max_iter=600,
        max_leaf_nodes=31,
        min_samples_leaf=40,
        l2_regularization=1.0,
        early_stopping=True,
        n_iter_no_change=20,
        categorical_features=categorical,
        random_state=seed,
    )
    x, y = multiplied(train, splits["train"])
    x_valid, y_valid = multiplied(valid, splits["valid"])
    model.fit(x, y, X_val=x_valid, y_val=y_valid)
    found = []
    for scenario in scenarios:
        missing = missing_under(scenario, schema, splits["test"].missing)
        found.append(model.predict_proba(_without(test, missing, owner))[:, 1])
    return logit(np.clip(np.stack(found), 1e-7, 1 - 1e-7))


def _without(x: np.ndarray, missing: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """x [R, columns] with NaN in the columns of fields that are missing [R, N]."""
    return np.where(missing[:, owner], np.nan, x)


class Features:
    """Columns of numbers for trees; what they need to know they learn from the training split."""

    def __init__(self, schema: Schema, train: Split, rng: np.random.Generator) -> None:
        self.schema, self.train = schema, train
        self.fold = rng.integers(FOLDS, size=len(train))
        self.rate = float(train.label.mean())

    def of(self, split: Split, out_of_fold: bool = False) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Columns [R, C] of a split, the field [C] that each belongs to, and which are categories."""
        columns: list[np.ndarray] = []
        owner: list[int] = []
        categorical: list[int] = []
        for place, (name, field) in enumerate(self.schema.fields.items()):
            before = len(columns)
            if name in self.schema.numeric:
                columns.append(split.numbers[:, list(self.schema.numeric).index(name)])
            else:
                columns += self._statistics(name, split, out_of_fold)
                values = np.unique(self.train.bags[name].values)
                if len(values) <= FEW:
                    shown = self._one_by_one(split, split.bags[name], values, isinstance(field, IdListConfig))
                    categorical += [] if isinstance(field, IdListConfig) else [len(columns)]
                    columns += shown
            owner += [place] * (len(columns) - before)
        x = np.stack(columns, axis=1)
        owners = np.array(owner)
        return _without(x, split.missing, owners), owners, categorical

    def _one_by_one(self, split: Split, bags: Bags, values: np.ndarray, is_list: bool) -> list[np.ndarray]:
        """A category, or of a list whether each value is in it."""
        place = np.searchsorted(values, bags.values)
        known = (place < len(values)) & (values[np.minimum(place, len(values) - 1)] == bags.values)
        if not is_list:
            column = np.full(len(split), np.nan)
            column[bags.rows[known]] = place[known]
            return [column]
        inside = np.zeros((len(split), len(values)))
        inside[bags.rows[known], place[known]] = 1
        return list(inside.T)

    def _statistics(self, name: str, split: Split, out_of_fold: bool) -> list[np.ndarray]:
        """Rate and count of a field's ids, means over the row."""
        bags, own = split.bags[name], self.train.bags[name]
        size = self.schema.table_of(name).id_range
        folds = range(FOLDS) if out_of_fold else [-1]
        rate, count = np.empty(len(bags.values)), np.empty(len(bags.values))
        for fold in folds:
            learning = self.fold[own.rows] != fold
            seen = np.bincount(own.values[learning], minlength=size)
            positive = np.bincount(own.values[learning], self.train.label[own.rows[learning]], size)
            asked = self.fold[bags.rows] == fold if out_of_fold else slice(None)
            ids = bags.values[asked]
            rate[asked] = (positive[ids] + PRIOR * self.rate) / (seen[ids] + PRIOR)
            count[asked] = np.log1p(seen[ids])
        lengths = np.maximum(1, np.bincount(bags.rows, minlength=len(split)))
        return [np.bincount(bags.rows, values, len(split)) / lengths for values in (rate, count)]
