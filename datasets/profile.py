"""What training data look like: one pass over a folder of Parquet, for `schema.yaml` and `profile.json`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from asymdiffrec.datasets import columns
from asymdiffrec.datasets.check import check_columns
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.schema import (
    AnyField,
    FieldsConfig,
    Learned,
    Moments,
    NumberConfig,
    Pattern,
)
from asymdiffrec.datasets.shards import Shards, filesystem_of, open_shards

PATTERNS = 256
CANDIDATES = 1 << 17
MERGE_AT = 1 << 16


def learn(folder: str | Path, config: FieldsConfig) -> tuple[Learned, dict[str, Any]]:
    """Read FOLDER/train, and valid and test where they are, once, a row group at a time.

    Gives what `schema.yaml` holds, and the content of `profile.json`: rows and label rate of each split, and of each
    field over the training rows its type, group and share of rows without it (`missing`); `cardinality` of ids;
    `mean_length` of the lists that are not empty (the pooling factor); mean, standard deviation, smallest and largest
    value of numbers.

    Null, an empty list (null elements do not count) and NaN in a number are missing. Distinct ids are counted exactly,
    in memory that grows with their number. `folder` is a path or a URI that `pyarrow.fs` knows. Raises InputError where
    the folder has no training rows, a file is not Parquet, or a column is lacking, of a wrong type or wrong in a value.
    """
    schema, label = config.to_schema(), config.data.label
    names = list(config.fields)
    summaries = {name: SUMMARIES[field.type](field) for name, field in config.fields.items()}
    patterns: Counter[bytes] = Counter()
    rows, label_rates = {}, {}
    for split, shards in _splits(str(folder)):
        check_columns(schema, shards, labelled=True)
        positives = 0.0
        for index, group in enumerate(shards.row_groups):
            wanted = [label, *(schema.column(name) for name in names)] if split == "train" else [label]
            table = shards.read(index, list(dict.fromkeys(wanted)))
            place = shards.place(index)
            positives += float(columns.labels(_array(table, label), f"{place}, column {label}").sum(dtype=np.float64))
            if split == "train":
                missing = np.empty((group.rows, len(names)), dtype=bool)
                for n, name in enumerate(names):
                    column = schema.column(name)
                    missing[:, n] = summaries[name].add(_array(table, column), f"{place}, column {column}")
                _count(patterns, missing)
        rows[split], label_rates[split] = shards.rows, positives / shards.rows

    reports = {name: summary.report() for name, summary in summaries.items()}
    learned = Learned(
        rows=rows,
        label_rate=label_rates["train"],
        numbers={name: Moments(mean=reports[name]["mean"], std=reports[name]["std"]) for name in schema.numbers},
        cardinalities={name: reports[name]["cardinality"] for name in schema.hashed},
        patterns=_frequent(patterns, names),
    )
    fields = {
        name: {
            "type": field.type,
            "group": field.group,
            "missing": 1 - summaries[name].present / rows["train"],
            **reports[name],
        }
        for name, field in config.fields.items()
    }
    return learned, {"rows": rows, "label_rate": label_rates, "fields": fields}


def _splits(folder: str) -> Iterator[tuple[str, Shards]]:
    filesystem, root = filesystem_of(folder)
    for split in ("train", "valid", "test"):
        if split == "train" or filesystem.get_file_info(f"{root}/{split}").type != pafs.FileType.NotFound:
            yield split, open_shards(f"{folder}/{split}")


def _array(table: pa.Table, column: str) -> pa.Array:
    return table.column(column).combine_chunks()


class _Summary(ABC):
    """What the row groups read so far say about one field."""

    def __init__(self, field: AnyField) -> None:
        self.field = field
        self.present = 0

    @abstractmethod
    def add(self, column: pa.Array, place: str) -> np.ndarray:
        """Take the R values of a row group in; [R] bool, which of them are missing."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """The field's entries of `profile.json`."""


class _Number(_Summary):
    """Moments are summed around the first value seen: exact enough for time stamps, whose mean dwarfs their spread."""

    def __init__(self, field: AnyField) -> None:
        super().__init__(field)
        self.origin = self.total = self.squares = 0.0
        self.least, self.most = np.inf, -np.inf

    def add(self, column: pa.Array, place: str) -> np.ndarray:
        values = columns.floats(column)
        missing = np.isnan(values)
        values = values[~missing]
        if (np.abs(values) > np.finfo(np.float32).max).any():
            raise InputError(
                f"{place}: found a number beyond {np.finfo(np.float32).max:.3g}, the largest that can be trained on"
            )
        if len(values):
            if not self.present:
                self.origin = float(values[0])
            self.present += len(values)
            self.total += float((values - self.origin).sum())
            self.squares += float(np.square(values - self.origin).sum())
            self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))
        return missing

    def report(self) -> dict[str, Any]:
        if not self.present:
            return Moments().model_dump()
        mean = self.origin + self.total / self.present
        return {
            "mean": mean,
            "std": standard_deviation(self.total, self.squares, self.present),
            "min": self.least,
            "max": self.most,
        }


def standard_deviation(total: float, squares: float, count: int) -> float:
    """Standard deviation from sums; 1 for a column that never varies, so that it standardises to 0."""
    if not count:
        return 1.0
    mean = total / count
    variance = squares / count - mean**2
    return math.sqrt(variance) if variance > 1e-12 * mean**2 else 1.0  # below that only rounding errors are left


class _Ids(_Summary):
    """New ids wait in `pending` until they outnumber the known ones: merging costs little however many there are."""

    def __init__(self, field: AnyField) -> None:
        super().__init__(field)
        self.known = np.empty(0, dtype=np.int64)
        self.pending: list[np.ndarray] = []

    def add(self, column: pa.Array, place: str) -> np.ndarray:
        present = columns.validity(column)
        self.present += int(present.sum())
        self._take(column.drop_null(), place)
        return ~present

    def _take(self, values: pa.Array, place: str) -> None:
        assert not isinstance(self.field, NumberConfig)
        self.pending.append(columns.as_int64(values.unique(), self.field.values, place))
        if sum(map(len, self.pending)) > max(MERGE_AT, len(self.known)):
            self._merge()

    def _merge(self) -> None:
        self.known, self.pending = np.unique(np.concatenate([self.known, *self.pending])), []

    def report(self) -> dict[str, Any]:
        self._merge()
        return {"cardinality": len(self.known)}


class _Lists(_Ids):
    def __init__(self, field: AnyField) -> None:
        super().__init__(field)
        self.elements = 0

    def add(self, column: pa.Array, place: str) -> np.ndarray:
        values, lengths = columns.ragged(column)
        self.present += int((lengths > 0).sum())
        self.elements += len(values)
        self._take(values, place)
        return lengths == 0

    def report(self) -> dict[str, Any]:
        return super().report() | {"mean_length": self.elements / max(self.present, 1)}


SUMMARIES: dict[str, type[_Summary]] = {"id": _Ids, "id_list": _Lists, "number": _Number}


def _count(patterns: Counter[bytes], missing: np.ndarray) -> None:
    """Add the rows of `missing` [R, N]; when there are too many patterns to hold, the rarer half is forgotten."""
    packed = np.packbits(missing, axis=1)
    width = packed.shape[1]
    found, counts = np.unique(packed.view(f"V{width}").ravel(), return_counts=True)
    for pattern, count in zip(found, counts, strict=True):
        patterns[pattern.tobytes()] += int(count)
    if len(patterns) > CANDIDATES:
        complete = patterns[bytes(width)]
        kept = patterns.most_common(CANDIDATES // 2)
        patterns.clear()
        patterns.update(dict(kept) | ({bytes(width): complete} if complete else {}))


def _frequent(patterns: Counter[bytes], names: list[str]) -> list[Pattern]:
    """The most frequent patterns, ties in a fixed order; the complete one is among them wherever a row was complete."""
    complete = bytes((len(names) + 7) // 8)
    ranked = sorted(patterns, key=lambda pattern: (-patterns[pattern], pattern))[:PATTERNS]
    if patterns[complete] and complete not in ranked:
        ranked[-1] = complete
    bits = {pattern: np.unpackbits(np.frombuffer(pattern, np.uint8))[: len(names)] for pattern in ranked}
    return [
        Pattern(missing=[name for name, bit in zip(names, bits[pattern], strict=True) if bit], rows=patterns[pattern])
        for pattern in ranked
    ]
