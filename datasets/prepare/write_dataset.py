"""Write a prepared data set: Parquet files for each split, a job file, the statistics and the profile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.atomic import rename_folder, require_absent, temporary_folder_for
from asymdiffrec.datasets.files.documents import write_yaml
from asymdiffrec.datasets.prepare.progress import ProgressCallback, no_progress
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.compute import compute_statistics

JOB_COMMENT = """\
# A training job: data, fields and model. Run it with `asymdiffrec train {path}`.
# `--set PATH=VALUE` replaces a value for one run, for example `--set data.window=1024`.
"""
STATISTICS_COMMENT = "# Computed from the training rows in train/. The fields are declared in job.yaml.\n"


def write_dataset(
    out: Path,
    splits: Mapping[str, Iterable[pa.Table]],
    job: Mapping[str, Any],
    *,
    profile: Mapping[str, Any] | None = None,
    rows_per_file: int = 1_000_000,
    rows_per_group: int = 16_384,
    compression: str = "zstd",
    rows: int | None = None,
    progress: ProgressCallback = no_progress,
) -> dict[str, Any]:
    """Write a data set to the new folder `out` and return the content of its `profile.json`.

    The folder contains train/, valid/ and test/ with Parquet files, job.yaml, statistics.yaml and profile.json. It is
    written under a temporary name in the parent folder of `out` and renamed at the end, so `out` is always complete.

    splits: {split: tables} for train, valid and test; each iterable is read once, one table at a time.
    job: content of the job file, with at least the sections `name`, `data` and `fields`.
    profile: additional entries of profile.json.
    rows_per_file: maximum number of rows of a Parquet file.
    rows_per_group: maximum number of rows of a row group.
    rows: number of rows of all splits together, for the share that `progress` reports; None: unknown.

    Raises InputError if `out` exists or a split has no rows.
    """
    require_absent(out)
    fields = FieldsConfig.model_validate({key: job[key] for key in ("data", "fields")})
    written = _RowCounter("writing", rows, progress)
    analysed = _RowCounter("computing statistics", rows, progress)
    with temporary_folder_for(out) as temporary:
        folder = temporary / "dataset"
        for split, tables in splits.items():
            (folder / split).mkdir(parents=True)
            row_groups = _regroup(written.count(tables), min(rows_per_group, rows_per_file))
            if not write_files(folder / split, row_groups, rows_per_file, compression):
                raise InputError(f"{out}: the {split} split has no rows; provide more data")
        statistics, computed_profile = compute_statistics(folder, fields, analysed.add)
        whole_profile = computed_profile | dict(profile or {})
        write_yaml(folder / "job.yaml", job, JOB_COMMENT.format(path=out / "job.yaml"))
        write_yaml(folder / "statistics.yaml", statistics, STATISTICS_COMMENT)
        (folder / "profile.json").write_text(json.dumps(whole_profile, indent=2) + "\n", encoding="utf-8")
        rename_folder(folder, out)
    return whole_profile


class _RowCounter:
    """A counter of the rows that a phase has processed; it reports the share to a progress callback."""

    def __init__(self, phase: str, total: int | None, progress: ProgressCallback) -> None:
        self._phase, self._total, self._progress, self._rows = phase, total, progress, 0

    def add(self, rows: int) -> None:
        """Count `rows` more rows."""
        self._rows += rows
        self._progress(self._phase, self._rows / self._total if self._total else None)

    def count(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables; count the rows of a table after the consumer has used it."""
        for table in tables:
            yield table
            self.add(len(table))


def _regroup(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of `tables` in tables of exactly `rows` rows; the last table may be shorter."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(map(len, pending)) < rows:
            continue
        joined = pa.concat_tables(pending)
        complete = len(joined) // rows * rows
        yield from (joined.slice(start, rows) for start in range(0, complete, rows))
        pending = [joined.slice(complete)]
    rest = pa.concat_tables(pending) if pending else None
    if rest is not None and len(rest):
        yield rest


def write_files(folder: Path, row_groups: Iterable[pa.Table], rows_per_file: int, compression: str = "zstd") -> int:
    """Write row groups to part-00000.parquet, part-00001.parquet, ... in `folder` and return the number of rows.

    The first row group of each file determines which columns of the file are dictionary-encoded.
    `pyarrow.dataset.write_dataset` can limit rows too, but must know these columns in advance.
    """
    rows = files = remaining = 0
    writer: pq.ParquetWriter | None = None
    try:
        for group in row_groups:
            if writer is None or len(group) > remaining:
                if writer is not None:
                    writer.close()
                path = folder / f"part-{files:05d}.parquet"
                writer = pq.ParquetWriter(
                    path,
                    group.schema,
                    compression=compression,
                    write_page_checksum=True,
                    use_dictionary=_columns_with_repetition(group),
                )
                files, remaining = files + 1, rows_per_file
            writer.write_table(group, row_group_size=len(group))
            rows, remaining = rows + len(group), remaining - len(group)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _columns_with_repetition(group: pa.Table) -> list[str]:
    """Return the Parquet paths of the columns whose distinct values occur at least twice on average.

    For other columns a dictionary would be larger than the values, and slower to read and to write.
    """
    paths = []
    for name in group.column_names:
        path, values = name, group[name]
        while pa.types.is_nested(values.type) and hasattr(values.type, "value_type"):
            path, values = f"{path}.list.element", pc.list_flatten(values)
        if 2 * pc.count_distinct(values).as_py() <= len(values) - values.null_count:
            paths.append(path)
    return paths
