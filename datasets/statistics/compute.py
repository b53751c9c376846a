"""What training data look like: one pass over a folder of Parquet, for `statistics.yaml` and `profile.json`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
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
from asymdiffrec.datasets.statistics.field_summary import Ids, Lists, Look, Numbers, Summary
from asymdiffrec.datasets.statistics.id_row_counts import RowCounts
from asymdiffrec.datasets.statistics.missing_patterns import Patterns
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.datasets.statistics.suspicious_fields import FirstRows, oddity


def compute_statistics(
    folder: str | Path, config: FieldsConfig, advance: Callable[[int], None] = lambda rows: None
) -> tuple[Statistics, dict[str, Any]]:
    """Read FOLDER/train, and the labels of valid and test where they are, once, a few row groups at a time.

    Gives what `statistics.yaml` holds, and the content of `profile.json`: `rows` and `label_rate` of each split; in
    `fields`, over the training rows, each field's type, group and share of rows without it (`missing`); of ids the
    `cardinality`, `cardinality_exact`, which is false where there are so many that it is estimated (see `Distinct`),
    how many `hot` ids take 90 % of all look-ups, and, where the field has a `min_count`, how many of the distinct ids
    are `frequent` and `rare`; of lists the `mean_length` of those that are not empty; of numbers mean and standard
    deviation once transformed, and the smallest and the largest as it stands; and in `suspicious` each field that looks
    wrong, with a sentence that says `why`.

    Null, an empty list (null elements do not count) and NaN in a number are missing. For a `min_count` a row counts an
    id once, however often its list repeats it. Memory does not grow with the number of rows: ids of fields with a
    `min_count` are counted on disk. Row groups are read by `data.threads` threads, and the result does not depend on
    their number.
    `folder` is a path or a URI that `pyarrow.fs` knows; `advance` is called with the number of rows of each row group.

    Raises InputError where the folder has no training rows, a file is not Parquet, or a column is lacking, of a wrong
    type or wrong in a value.
    """
    schema, names = config.to_schema(), list(config.fields)
    threads = config.data.threads or len(os.sched_getaffinity(0))
    with RowCounts([name for name, field in schema.sparse.items() if field.min_count > 1], threads) as counts:
        summaries = {name: _summary(name, schema, counts) for name in names}
        patterns, first_rows = Patterns(names), FirstRows(names)
        rows, label_rates = {}, {}
        for split, shards in _splits(str(folder)):
            check_columns(schema, shards, labelled=True)
            looking = summaries if split == "train" else {}
            jobs = (partial(_read, shards, index, schema, looking) for index in range(len(shards.row_groups)))
            positives = 0
            for group in prefetch(jobs, threads):
                positives += int(group.labels.sum(dtype=np.float64))
                for name, look in group.looks.items():
                    summaries[name].add(look)
                if looking:
                    patterns.add(group.patterns)
                    first_rows.add(group.labels, group.looks)
                advance(len(group.labels))
            rows[split], label_rates[split] = shards.rows, positives / shards.rows
        reports = {name: _report(config.fields[name], summaries[name], rows["train"]) for name in names}
        statistics = Statistics(
            rows=rows,
            label_rate=label_rates["train"],
            numeric={name: summary.moments for name, summary in summaries.items() if isinstance(summary, Numbers)},
            cardinalities={name: reports[name]["cardinality"] for name in schema.sparse},
            lookups={
                name: summary.lookups(rows["train"]) for name, summary in summaries.items() if isinstance(summary, Ids)
            },
            vocabularies={
                name: vocabulary
                for name, summary in summaries.items()
                if isinstance(summary, Ids) and (vocabulary := summary.vocabulary)
            },
            missing_patterns=patterns.most_frequent(),
        )
    whys = {name: oddity(reports[name], rows["train"]) or first_rows.telling(name) for name in names}
    suspicious = [{"field": name, "why": why} for name, why in whys.items() if why]
    return statistics, {"rows": rows, "label_rate": label_rates, "fields": reports, "suspicious": suspicious}


def _splits(folder: str) -> Iterator[tuple[str, Shards]]:
    for split in ("train", "valid", "test"):
        location = join_location(folder, split)
        if split == "train" or location_exists(location):
            yield split, open_shards(location)


def _summary(name: str, schema: Schema, counts: RowCounts) -> Summary:
    field = schema.fields[name]
    if isinstance(field, NumericFieldConfig):
        return Numbers(field)
    summary = Lists if isinstance(field, IdListConfig) else Ids
    return summary(name, field, schema.table_of(name), counts)


@dataclass(frozen=True)
class _Group:
    """What one row group says."""

    labels: np.ndarray
    looks: dict[str, Look]
    patterns: Counter[bytes]


def _read(shards: Shards, index: int, schema: Schema, summaries: dict[str, Summary]) -> _Group:
    data, place = schema.data, shards.location_of(index)
    beside = [name for name in (data.label, data.weight) if name]
    wanted = schema.columns(labelled=False) if summaries else []
    table = shards.read(index, list(dict.fromkeys([*beside, *wanted])))
    arrays = {name: table.column(name).combine_chunks() for name in table.column_names}
    labels = decode_labels(arrays[data.label], f"{place}, column {data.label}")
    if data.weight:
        decode_sample_weights(arrays[data.weight], f"{place}, column {data.weight}")
    looks = {}
    for name, summary in summaries.items():
        field, column = schema.fields[name], schema.column(name)
        weights = arrays[field.weights] if isinstance(field, IdListConfig) and field.weights else None
        looks[name] = summary.look(arrays[column], weights, f"{place}, column {column}")
    missing = [look.missing for look in looks.values()]
    return _Group(labels, looks, Patterns.counted(np.stack(missing, axis=1)) if missing else Counter())


def _report(field: AnyField, summary: Summary, rows: int) -> dict[str, Any]:
    """A field's entries of `profile.json`."""
    return {
        "type": field.type,
        "group": field.group,
        "missing": 1 - summary.present / rows,
        **summary.report(),
    }
