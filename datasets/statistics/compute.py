"""Compute the statistics and the profile of a data set in one pass over its Parquet files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from asymdiffrec.datasets.decoding.column_check import check_columns
from asymdiffrec.datasets.decoding.numbers import decode_labels, decode_sample_weights
from asymdiffrec.datasets.files.locations import join_location, location_exists
from asymdiffrec.datasets.prefetch import prefetch
from asymdiffrec.datasets.schema import AnyField, FieldsConfig, IdListConfig, NumericFieldConfig, Schema
from asymdiffrec.datasets.shards import Shards, open_shards
from asymdiffrec.datasets.statistics.field_summary import (
    FieldSummary,
    IdListSummary,
    IdSummary,
    NumericSummary,
    RowGroupSummary,
)
from asymdiffrec.datasets.statistics.id_row_counts import IdRowCounts
from asymdiffrec.datasets.statistics.missing_patterns import MissingPatternCounter
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.datasets.statistics.suspicious_fields import LeakageSample, find_suspicious


def compute_statistics(
    folder: str | Path, config: FieldsConfig, on_rows: Callable[[int], None] = lambda rows: None
) -> tuple[Statistics, dict[str, Any]]:
    """Read a data set once and return the content of `statistics.yaml` and of `profile.json`.

    All columns of the training rows are read; of valid and test, if they exist, only the labels and sample weights.

    folder: path or URI (as in `pyarrow.fs`) of the data set, with train/, valid/ and test/.
    on_rows: called after each row group with its number of rows.

    The profile has these entries:
    - `rows` and `label_rate` of each split;
    - `fields`: for each field its type, its group and the share of training rows in which it is `missing`. For ids also
      the `cardinality`, whether it is exact (`cardinality_exact`, see `DistinctIdSketch`), how many ids get 90 % of all
      look-ups (`hot`), and with a `min_count` how many distinct ids are `frequent` and `rare`. For lists also the
      `mean_length` of non-empty lists. For numbers mean and std after the transform, and min and max before it;
    - `suspicious`: each suspicious field, with the reason (`why`).

    Null, NaN, and a list without ids mean missing; null elements of a list do not count as ids. For `min_count`, an id
    counts once per row even if a list contains it twice. Memory does not grow with the number of rows, because ids of
    fields with a `min_count` are counted on disk. Row groups are read by `data.threads` threads; the result does not
    depend on the number of threads.

    Raises InputError if there are no training rows, a file is not Parquet, or a column is absent, has a wrong type or a
    wrong value.
    """
    schema, names = config.to_schema(), list(config.fields)
    threads = config.data.threads or len(os.sched_getaffinity(0))
    with IdRowCounts([name for name, field in schema.sparse.items() if field.min_count > 1], threads) as row_counts:
        summaries = {name: _new_summary(name, schema, row_counts) for name in names}
        patterns, leakage_sample = MissingPatternCounter(names), LeakageSample(names)
        rows, label_rates = {}, {}
        for split, shards in _open_splits(str(folder)):
            check_columns(schema, shards, labelled=True)
            split_summaries = summaries if split == "train" else {}
            jobs = (
                partial(_summarise_row_group, shards, index, schema, split_summaries)
                for index in range(len(shards.row_groups))
            )
            positives = 0
            for group in prefetch(jobs, threads):
                positives += int(group.labels.sum(dtype=np.float64))
                for name, summary in group.fields.items():
                    summaries[name].add(summary)
                if split_summaries:
                    patterns.add(group.patterns)
                    leakage_sample.add(group.labels, group.fields)
                on_rows(len(group.labels))
            rows[split], label_rates[split] = shards.rows, positives / shards.rows
        reports = {name: _report(config.fields[name], summaries[name], rows["train"]) for name in names}
        statistics = _statistics(summaries, reports, rows, label_rates["train"], patterns)
    reasons = {name: find_suspicious(reports[name], rows["train"]) or leakage_sample.find_leak(name) for name in names}
    suspicious = [{"field": name, "why": reason} for name, reason in reasons.items() if reason]
    return statistics, {"rows": rows, "label_rate": label_rates, "fields": reports, "suspicious": suspicious}


def _open_splits(folder: str) -> Iterator[tuple[str, Shards]]:
    """Yield the splits that exist; train is required."""
    for split in ("train", "valid", "test"):
        location = join_location(folder, split)
        if split == "train" or location_exists(location):
            yield split, open_shards(location)


def _new_summary(name: str, schema: Schema, row_counts: IdRowCounts) -> FieldSummary:
    """Return an empty summary for a field."""
    field = schema.fields[name]
    if isinstance(field, NumericFieldConfig):
        return NumericSummary(field)
    summary = IdListSummary if isinstance(field, IdListConfig) else IdSummary
    return summary(name, field, schema.table_of(name), row_counts)


def _statistics(
    summaries: Mapping[str, FieldSummary],
    reports: Mapping[str, dict[str, Any]],
    rows: dict[str, int],
    label_rate: float,
    patterns: MissingPatternCounter,
) -> Statistics:
    """Return the statistics, given the summaries of all training rows."""
    numeric = {name: summary for name, summary in summaries.items() if isinstance(summary, NumericSummary)}
    sparse = {name: summary for name, summary in summaries.items() if isinstance(summary, IdSummary)}
    vocabularies = {name: summary.vocabulary for name, summary in sparse.items()}
    return Statistics(
        rows=rows,
        label_rate=label_rate,
        numeric={name: summary.statistics for name, summary in numeric.items()},
        cardinalities={name: reports[name]["cardinality"] for name in sparse},
        lookups={name: summary.lookups(rows["train"]) for name, summary in sparse.items()},
        vocabularies={name: vocabulary for name, vocabulary in vocabularies.items() if vocabulary},
        missing_patterns=patterns.most_frequent(),
    )


@dataclass(frozen=True)
class _RowGroup:
    """The labels and the summaries of one row group."""

    labels: np.ndarray
    """[R]"""
    fields: dict[str, RowGroupSummary]
    patterns: Counter[bytes]


def _summarise_row_group(
    shards: Shards, index: int, schema: Schema, summaries: Mapping[str, FieldSummary]
) -> _RowGroup:
    """Read and check a row group, and summarise the fields that are keys of `summaries`."""
    data, location = schema.data, shards.location_of(index)
    columns = [name for name in (data.label, data.weight) if name]
    columns += schema.columns(labelled=False) if summaries else []
    table = shards.read(index, list(dict.fromkeys(columns)))
    arrays = {name: table.column(name).combine_chunks() for name in table.column_names}
    labels = decode_labels(arrays[data.label], f"{location}, column {data.label}")
    if data.weight:
        decode_sample_weights(arrays[data.weight], f"{location}, column {data.weight}")
    fields = {}
    for name, summary in summaries.items():
        field, column = schema.fields[name], schema.column(name)
        weights = arrays[field.weights] if isinstance(field, IdListConfig) and field.weights else None
        fields[name] = summary.summarise(arrays[column], weights, f"{location}, column {column}")
    missing = [summary.missing for summary in fields.values()]
    patterns = MissingPatternCounter.count_rows(np.stack(missing, axis=1)) if missing else Counter[bytes]()
    return _RowGroup(labels, fields, patterns)


def _report(field: AnyField, summary: FieldSummary, rows: int) -> dict[str, Any]:
    """Return the entry of a field in `profile.json`."""
    return {
        "type": field.type,
        "group": field.group,
        "missing": 1 - summary.present / rows,
        **summary.report(),
    }
