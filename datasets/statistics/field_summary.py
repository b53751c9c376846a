"""What is learned of one field: each row group is looked at by itself, and the looks are added up in order."""

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
from asymdiffrec.datasets.decoding.hashing import splitmix64
from asymdiffrec.datasets.decoding.ids import as_int64_ids, decode_id_lists, decode_ids
from asymdiffrec.datasets.decoding.numbers import transform_values
from asymdiffrec.datasets.decoding.value_rules import MAX_FLOAT
from asymdiffrec.datasets.schema import IdConfig, IdListConfig, NumericFieldConfig, Table
from asymdiffrec.datasets.statistics.distinct_ids import Distinct
from asymdiffrec.datasets.statistics.histogram import Distribution
from asymdiffrec.datasets.statistics.id_row_counts import RowCounts
from asymdiffrec.datasets.statistics.lookups import Lookups
from asymdiffrec.datasets.statistics.statistics import MAX_KNOTS, NumericStatistics
from asymdiffrec.datasets.statistics.vocabulary import Vocabulary


@dataclass(frozen=True)
class Look:
    """What a row group of R rows says about a field."""

    missing: np.ndarray
    """[R] bool"""
    values: np.ndarray
    """[R] float64 numbers, or int64 that are equal where the ids are; anything where missing"""
    found: Any
    """What the summary that looked makes of it"""


class Summary(ABC):
    """What the row groups that were added say about one field."""

    present = 0
    """Rows that have the field"""

    @abstractmethod
    def look(self, column: pa.Array, weights: pa.Array | None, place: str) -> Look:
        """A row group's values; changes nothing, so that threads may call it.

        Raises InputError where the field allows no such value.
        """

    def add(self, look: Look) -> None:
        self.present += len(look.missing) - int(look.missing.sum())
        self._add(look.found)

    @abstractmethod
    def _add(self, found: Any) -> None: ...

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """The field's entries of `profile.json`."""


class Numbers(Summary):
    """Counts, means and sums of squared distances from the mean, put together as Chan, Golub and LeVeque (1979) do.

    Mean and standard deviation are of the transformed numbers, the smallest and the largest are as they stand.
    """

    def __init__(self, field: NumericFieldConfig) -> None:
        self._field = field
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._least, self._most = math.inf, -math.inf
        self._distribution = Distribution(np.empty(0), np.empty(0, np.int64))

    def look(self, column: pa.Array, weights: pa.Array | None, place: str) -> Look:
        values = as_float64(column)
        missing = np.isnan(values)
        wrong = np.abs(values) > MAX_FLOAT
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{place}, row {row}: number {values[row]:.6g}; allowed is null, NaN or one within "
                f"{MAX_FLOAT:.3g}, the largest that can be trained on"
            )
        present = values[~missing]
        if not len(present):
            return Look(missing, values, None)
        scaled = transform_values(present, self._field.transform)
        mean = float(scaled.mean())
        squares = float(np.square(scaled - mean).sum())
        extremes = float(present.min()), float(present.max())
        return Look(missing, values, (len(present), mean, squares, *extremes, Distribution.of(scaled)))

    def _add(self, found: tuple[int, float, float, float, float, Distribution] | None) -> None:
        if found is None:
            return
        count, mean, squares, least, most, distribution = found
        apart, together = mean - self._mean, self._count + count
        self._squares += squares + apart**2 * self._count * count / together
        self._mean += apart * count / together
        self._count = together
        self._least, self._most = min(self._least, least), max(self._most, most)
        self._distribution = self._distribution.and_of(distribution)

    @property
    def moments(self) -> NumericStatistics:
        """A number that never varies gets a standard deviation of 1, so that it standardises to 0."""
        std = math.sqrt(self._squares / self._count) if self._least < self._most else 0.0
        return NumericStatistics(mean=self._mean, std=std or 1.0, knots=self._distribution.knots(MAX_KNOTS))

    def report(self) -> dict[str, Any]:
        extremes = {"min": self._least, "max": self._most} if self.present else {}
        return self.moments.model_dump(exclude={"knots"}) | extremes


HOT = 0.9
"""Of all look-ups: `hot` of a report is how many ids take so many"""


class Ids(Summary):
    """The distinct ids and how often they come; of a field with a `min_count` also those in that many rows or more."""

    def __init__(self, name: str, field: IdConfig | IdListConfig, table: Table, counts: RowCounts) -> None:
        self._name, self._field, self._table, self._counts = name, field, table, counts
        self._distinct = Distinct()

    def look(self, column: pa.Array, weights: pa.Array | None, place: str) -> Look:
        present = validity(column)
        ids = as_int64_ids(column, self._field.values, place, lambda row: row)
        if not self._field.hash:
            decode_ids(column, self._table, None, place)  # raises where one is no row of the table
        times = _times(ids[present] if column.null_count else ids)
        return Look(~present, ids, (times, times))

    def _add(self, found: Any) -> None:
        times, rows = found
        self._distinct.add(*(part.to_numpy() for part in times))
        if self._field.min_count > 1:
            self._counts.add(self._name, *rows)

    def lookups(self, rows: int) -> Lookups:
        """How often the ids come, in `rows` samples."""
        return Lookups.of(self._distinct.times(), self._distinct.count()[0], rows, self.elements)

    @property
    def elements(self) -> int:
        """Ids in all rows together"""
        return self.present

    @cached_property
    def _frequent(self) -> tuple[np.ndarray, int]:
        return self._counts.frequent(self._name, self._field.min_count)

    @property
    def vocabulary(self) -> Vocabulary | None:
        return Vocabulary.of(self._frequent[0]) if self._field.min_count > 1 else None

    def report(self) -> dict[str, Any]:
        hot = {"hot": self.lookups(max(self.present, 1)).hot_ids(HOT)}
        if self._field.min_count == 1:
            distinct, exact = self._distinct.count()
            return {"cardinality": distinct, "cardinality_exact": exact} | hot
        frequent, distinct = self._frequent
        counts = {"frequent": len(frequent), "rare": distinct - len(frequent)}
        return {"cardinality": distinct, "cardinality_exact": True} | counts | hot


class Lists(Ids):
    """As for ids; for a `min_count` a row counts an id once, however often its list repeats it."""

    _elements = 0

    @property
    def elements(self) -> int:
        return self._elements

    def look(self, column: pa.Array, weights: pa.Array | None, place: str) -> Look:
        assert isinstance(self._field, IdListConfig)
        values, lengths = flatten_lists_without_nulls(column)
        ends = np.cumsum(lengths)
        ids = as_int64_ids(values, self._field.values, place, lambda at: int(np.searchsorted(ends, at, "right")))
        if weights is not None or not self._field.hash:
            decode_id_lists(column, weights, self._field, self._table, None, place)  # raises for a wrong weight or id
        before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(splitmix64(ids))])
        sums = (before[ends] - before[ends - lengths]).view(np.int64)
        times = rows = _times(ids)
        if self._field.min_count > 1:
            rows = _times(_once_a_row(ids, np.repeat(np.arange(len(lengths)), lengths)))
        return Look(lengths == 0, sums, (times, rows, int(lengths.sum())))

    def _add(self, found: Any) -> None:
        *counts, elements = found
        super()._add(counts)
        self._elements += elements

    def report(self) -> dict[str, Any]:
        return super().report() | {"mean_length": self.elements / max(self.present, 1)}


def _times(ids: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """The distinct ones of ids [V] int64, and how often each is there."""
    distinct, times = pa.array(ids).value_counts().flatten()
    return distinct, times


def _once_a_row(ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The ids [V] of lists without those that stand in the same one of `rows` [V] already."""
    order = np.lexsort((ids, rows))
    ids, rows = ids[order], rows[order]
    again = (ids[1:] == ids[:-1]) & (rows[1:] == rows[:-1])
    return ids[np.concatenate([[True], ~again])[: len(ids)]]
