"""Gradient boosted trees of scikit-learn, with native missing values, on the fields and on target statistics.

An id field has two columns: the count of its id and the smoothed rate of positives of its id in the training rows. For
the training rows themselves both are computed out of fold. A list field has the means over its ids. A field with few
values also has columns for the values themselves. All columns of a missing field are NaN.
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
"""Number of rows with the mean rate that are added to smooth a rate"""
MAX_CATEGORIES = 64
"""Largest number of distinct values for which a field gets columns for the values themselves"""
COPIES = 2
"""Number of copies of the training rows, with dropped fields, that are added"""


def boosting(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """Train on the original rows; return logits [scenarios, R]. A `Rival`."""
    return _scores(job, statistics, scenarios, seed, copies=0)


def boosting_dropped(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int) -> np.ndarray:
    """Train on the original rows and on copies with dropped fields; return logits [scenarios, R]. A `Rival`.

    The probability to drop a field is drawn from U(0, 0.8) for each copied row.
    """
    return _scores(job, statistics, scenarios, seed, copies=COPIES)


def _scores(job: Job, statistics: Statistics, scenarios: Sequence[Scenario], seed: int, copies: int) -> np.ndarray:
    schema, rng = job.to_schema(statistics), np.random.default_rng(seed)
    splits = {name: read(job, schema, name) for name in ("train", "valid", "test")}
    features = Features(schema, splits["train"], rng)
    train, field_of_column, categorical = features.columns(splits["train"], out_of_fold=True)
    valid, *_ = features.columns(splits["valid"])
    test, *_ = features.columns(splits["test"])

    def with_copies(x: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray]:
        parts = [x]
        for _ in range(copies):
            drop = rng.random(split.missing.shape) < 0.8 * rng.random((len(split), 1))
            parts.append(_without(x, drop, field_of_column))
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
    x, y = with_copies(train, splits["train"])
    x_valid, y_valid = with_copies(valid, splits["valid"])
    model.fit(x, y, X_val=x_valid, y_val=y_valid)
    probabilities = []
    for scenario in scenarios:
        missing = missing_under(scenario, schema, splits["test"].missing)
        probabilities.append(model.predict_proba(_without(test, missing, field_of_column))[:, 1])
    return logit(np.clip(np.stack(probabilities), 1e-7, 1 - 1e-7))


def _without(x: np.ndarray, missing: np.ndarray, field_of_column: np.ndarray) -> np.ndarray:
    """Return x [R, C] with NaN in the columns of missing fields. missing: [R, N]."""
    return np.where(missing[:, field_of_column], np.nan, x)


class Features:
    """Columns for trees, computed with statistics of the training split."""

    def __init__(self, schema: Schema, train: Split, rng: np.random.Generator) -> None:
        self.schema, self.train = schema, train
        self.fold = rng.integers(FOLDS, size=len(train))
        self.rate = float(train.label.mean())

    def columns(self, split: Split, out_of_fold: bool = False) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Return the columns of a split [R, C], the field of each column [C], and the indices of the categories."""
        columns: list[np.ndarray] = []
        field_of_column: list[int] = []
        categorical: list[int] = []
        for index, (name, field) in enumerate(self.schema.fields.items()):
            before = len(columns)
            if name in self.schema.numeric:
                columns.append(split.numeric[:, list(self.schema.numeric).index(name)])
            else:
                columns += self._statistics(name, split, out_of_fold)
                values = np.unique(self.train.bags[name].values)
                if len(values) <= MAX_CATEGORIES:
                    is_list = isinstance(field, IdListConfig)
                    categorical += [] if is_list else [len(columns)]
                    columns += self._values(split, split.bags[name], values, is_list)
            field_of_column += [index] * (len(columns) - before)
        x, fields = np.stack(columns, axis=1), np.array(field_of_column)
        return _without(x, split.missing, fields), fields, categorical

    def _values(self, split: Split, bags: Bags, values: np.ndarray, is_list: bool) -> list[np.ndarray]:
        """Return columns for the values of a field with few values.

        An id field has one column with the category of the id. A list field has a 0/1 column for each value in
        `values`: whether the list contains the value.
        """
        category = np.searchsorted(values, bags.values)
        known = (category < len(values)) & (values[np.minimum(category, len(values) - 1)] == bags.values)
        if not is_list:
            column = np.full(len(split), np.nan)
            column[bags.rows[known]] = category[known]
            return [column]
        contains = np.zeros((len(split), len(values)))
        contains[bags.rows[known], category[known]] = 1
        return list(contains.T)

    def _statistics(self, name: str, split: Split, out_of_fold: bool) -> list[np.ndarray]:
        """Return two columns for a field: rate of positives and log count of its ids.

        Each is a mean over the ids of a row.
        """
        bags, train = split.bags[name], self.train.bags[name]
        size = self.schema.table_of(name).id_range
        folds = range(FOLDS) if out_of_fold else [-1]
        rate, count = np.empty(len(bags.values)), np.empty(len(bags.values))
        for fold in folds:
            learning = self.fold[train.rows] != fold
            seen = np.bincount(train.values[learning], minlength=size)
            positive = np.bincount(train.values[learning], self.train.label[train.rows[learning]], size)
            selected = self.fold[bags.rows] == fold if out_of_fold else slice(None)
            ids = bags.values[selected]
            rate[selected] = (positive[ids] + PRIOR * self.rate) / (seen[ids] + PRIOR)
            count[selected] = np.log1p(seen[ids])
        lengths = np.maximum(1, np.bincount(bags.rows, minlength=len(split)))
        return [np.bincount(bags.rows, values, len(split)) / lengths for values in (rate, count)]
