"""Summaries of a field over the training rows: each row group is summarised separately, then the results are added."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.arrays import as_float64, flatten_lists_without_nulls, validity
from asymdiffrec.datasets.decoding.id_hash import splitmix64
from asymdiffrec.datasets.decoding.ids import as_int64_ids, decode_id_lists, decode_ids
from asymdiffrec.datasets.decoding.numbers import transform_values
from asymdiffrec.datasets.decoding.value_rules import MAX_FLOAT
from asymdiffrec.datasets.schema import IdConfig, IdListConfig, NumericFieldConfig, Table
from asymdiffrec.datasets.statistics.distinct_ids import DistinctIdSketch
from asymdiffrec.datasets.statistics.histogram import Histogram
from asymdiffrec.datasets.statistics.id_row_counts import IdRowCounts
from asymdiffrec.datasets.statistics.lookups import Lookups
from asymdiffrec.datasets.statistics.statistics import MAX_KNOTS, NumericStatistics
from asymdiffrec.datasets.statistics.vocabulary import Vocabulary

HOT_SHARE = 0.9
"""The entry `hot` of a report is the number of most frequent ids that together get this share of the look-ups"""


@dataclass(frozen=True)
class RowGroupSummary:
    """The summary of one field over a row group with R rows."""

    missing: np.ndarray
    """[R] bool"""
    values: np.ndarray
    """[R] numbers as float64; ids or lists as int64 codes, equal for equal ids or lists. Arbitrary where missing"""
    figures: Any
    """The argument of `FieldSummary._add`"""


class FieldSummary(ABC):
    """The summary of one field over all row groups that were added."""

    present = 0
    """Number of rows that have a value"""

    @abstractmethod
    def summarise(self, column: pa.Array, weights: pa.Array | None, location: str) -> RowGroupSummary:
        """Return the summary of a row group. Thread-safe: it does not change the object.

        Raises InputError for a value that the field does not allow; the message starts with `location`.
        """

    def add(self, group: RowGroupSummary) -> None:
        """Add the summary of a row group."""
        self.present += len(group.missing) - int(group.missing.sum())
        self._add(group.figures)

    @abstractmethod
    def _add(self, figures: Any) -> None: ...

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Return the entries of the field in `profile.json`."""


class NumericSummary(FieldSummary):
    """The mean, standard deviation and histogram of the transformed numbers, and the range of the raw numbers.

    Counts, means and sums of squared deviations of row groups are combined as in Chan, Golub and LeVeque (1979).
    pyarrow and numpy cannot combine the results of several arrays.
    """

    def __init__(self, field: NumericFieldConfig) -> None:
        self._field = field
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._min, self._max = math.inf, -math.inf
        self._histogram = Histogram.empty()

    def summarise(self, column: pa.Array, weights: pa.Array | None, location: str) -> RowGroupSummary:
        """Return the summary of a row group. Raises InputError for a number that is too large for fp32."""
        values = as_float64(column)
        missing = np.isnan(values)
        too_large = np.abs(values) > MAX_FLOAT
        if too_large.any():
            row = int(np.argmax(too_large))
            raise InputError(
                f"{location}, row {row}: found {values[row]:.6g}; allowed are null, NaN and numbers from "
                f"-{MAX_FLOAT:.3g} to {MAX_FLOAT:.3g}"
            )
        present = values[~missing]
        if not len(present):
            return RowGroupSummary(missing, values, None)
        transformed = transform_values(present, self._field.transform)
        mean = float(transformed.mean())
        squares = float(np.square(transformed - mean).sum())
        extremes = float(present.min()), float(present.max())
        histogram = Histogram.from_values(transformed)
        return RowGroupSummary(missing, values, (len(present), mean, squares, *extremes, histogram))

    def _add(self, figures: tuple[int, float, float, float, float, Histogram] | None) -> None:
        if figures is None:
            return
        count, mean, squares, smallest, largest, histogram = figures
        difference, total = mean - self._mean, self._count + count
        self._squares += squares + difference**2 * self._count * count / total
        self._mean += difference * count / total
        self._count = total
        self._min, self._max = min(self._min, smallest), max(self._max, largest)
        self._histogram = self._histogram.merge(histogram)

    @property
    def statistics(self) -> NumericStatistics:
        """The statistics of the field. A constant field gets the standard deviation 1, so it is standardised to 0."""
        std = math.sqrt(self._squares / self._count) if self._min < self._max else 0.0
        return NumericStatistics(mean=self._mean, std=std or 1.0, knots=self._histogram.knots(MAX_KNOTS))

    def report(self) -> dict[str, Any]:
        """Return mean, std, min and max."""
        extremes = {"min": self._min, "max": self._max} if self.present else {}
        return self.statistics.model_dump(exclude={"knots"}) | extremes


class IdSummary(FieldSummary):
    """The distinct ids of an id field and their counts; with a `min_count` also the frequent ids."""

    def __init__(self, name: str, field: IdConfig | IdListConfig, table: Table, row_counts: IdRowCounts) -> None:
        self._name, self._field, self._table, self._row_counts = name, field, table, row_counts
        self._sketch = DistinctIdSketch()

    def summarise(self, column: pa.Array, weights: pa.Array | None, location: str) -> RowGroupSummary:
        """Return the summary of a row group. Raises InputError for a value that is not an id of the table."""
        present = validity(column)
        ids = as_int64_ids(column, self._field.values, location, lambda row: row)
        if not self._field.hash:
            decode_ids(column, self._table, None, location)  # raises for an id that is not a row of the table
        counts = _count_ids(ids[present] if column.null_count else ids)
        return RowGroupSummary(~present, ids, (counts, counts))

    def _add(self, figures: Any) -> None:
        counts, row_counts = figures
        self._sketch.add(*(part.to_numpy() for part in counts))
        if self._field.min_count > 1:
            self._row_counts.add(self._name, *row_counts)

    def lookups(self, rows: int) -> Lookups:
        """Return the frequency distribution of the ids in `rows` samples."""
        return Lookups.from_counts(self._sketch.counts(), self._sketch.distinct()[0], rows, self.total_ids)

    @property
    def total_ids(self) -> int:
        """The number of ids in all rows, with repetitions."""
        return self.present

    @cached_property
    def _frequent_ids(self) -> tuple[np.ndarray, int]:
        return self._row_counts.frequent_ids(self._name, self._field.min_count)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The frequent ids, or None if the field has no `min_count`."""
        return Vocabulary.from_ids(self._frequent_ids[0]) if self._field.min_count > 1 else None

    def report(self) -> dict[str, Any]:
        """Return the cardinality and the numbers of hot, frequent and rare ids."""
        hot = {"hot": self.lookups(max(self.present, 1)).hot_ids(HOT_SHARE)}
        if self._field.min_count == 1:
            distinct, exact = self._sketch.distinct()
            return {"cardinality": distinct, "cardinality_exact": exact} | hot
        frequent, distinct = self._frequent_ids
        counts = {"frequent": len(frequent), "rare": distinct - len(frequent)}
        return {"cardinality": distinct, "cardinality_exact": True} | counts | hot


class IdListSummary(IdSummary):
    """The distinct ids of an id_list field. For `min_count`, an id counts once per row, even if a list repeats it."""

    _total_ids = 0

    @property
    def total_ids(self) -> int:
        """The number of ids in all lists, with repetitions."""
        return self._total_ids

    def summarise(self, column: pa.Array, weights: pa.Array | None, location: str) -> RowGroupSummary:
        """Return the summary of a row group. Raises InputError for a value that is not a list of ids or of weights."""
        assert isinstance(self._field, IdListConfig)
        values, lengths = flatten_lists_without_nulls(column)
        ends = np.cumsum(lengths)
        ids = as_int64_ids(values, self._field.values, location, lambda at: int(np.searchsorted(ends, at, "right")))
        if weights is not None or not self._field.hash:
            # Raises for an id that is not a row of the table, and for a wrong weight.
            decode_id_lists(column, weights, self._field, self._table, None, location)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(splitmix64(ids))])
        codes = (sums[ends] - sums[ends - lengths]).view(np.int64)
        counts = row_counts = _count_ids(ids)
        if self._field.min_count > 1:
            row_counts = _count_rows(ids, np.repeat(np.arange(len(lengths)), lengths))
        return RowGroupSummary(lengths == 0, codes, (counts, row_counts, int(lengths.sum())))

    def _add(self, figures: Any) -> None:
        *counts, total_ids = figures
        super()._add(counts)
        self._total_ids += total_ids

    def report(self) -> dict[str, Any]:
        """Return the entries of an id field, and the mean length of the lists that are not empty."""
        return super().report() | {"mean_length": self.total_ids / max(self.present, 1)}


def _count_ids(ids: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Return the distinct ids of `ids` [V] int64, and their counts."""
    distinct, counts = pa.array(ids).value_counts().flatten()
    return distinct, counts


def _count_rows(ids: np.ndarray, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Return the distinct ids of `ids` [V] int64, and the number of different `rows` [V] in which each occurs."""
    pairs = pa.table({"row": rows, "id": ids}).group_by(["row", "id"], use_threads=False).aggregate([])
    distinct, counts = pairs["id"].combine_chunks().value_counts().flatten()
    return distinct, counts
