"""How a prepared data set is written: Parquet splits, a ready job file, and what was learned, all or nothing."""

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
from asymdiffrec.datasets.prepare.progress import Progress, silent
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.compute import compute_statistics

JOB_COMMENT = """\
# One training job: which data, which fields, which model. Run it with `asymdiffrec train {path}`;
# any value can be replaced for one run, as in `--set data.window=1024`.
"""
SCHEMA_COMMENT = "# Learned from the training split beside this file; `job.yaml` says what the fields are.\n"


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
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the data set `out` and give the content of its `profile.json`.

    `splits` gives the tables of train, valid and test, which are drawn one at a time; `job` is the job file, with at
    least the sections `name`, `data` and `fields`; `profile` is added to `profile.json`. Files hold at most
    `rows_per_file` rows, in row groups of `rows_per_group`. `progress` is told of the `rows` that there will be in all
    splits. Everything is written beside `out` and renamed at the end: `out` is whole or absent.

    Raises InputError where `out` exists or a split has no rows.
    """
    require_absent(out)
    fields = FieldsConfig.model_validate({key: job[key] for key in ("data", "fields")})
    writing, learning = _Counter("writing", rows, progress), _Counter("learning from the rows", rows, progress)
    with temporary_folder_for(out) as temporary:
        folder = temporary / "dataset"
        for split, tables in splits.items():
            (folder / split).mkdir(parents=True)
            groups = _regroup(writing.passing(tables), min(rows_per_group, rows_per_file))
            if not write_files(folder / split, groups, rows_per_file, compression):
                raise InputError(f"{out}: the {split} split has no rows; give more data")
        statistics, learned_profile = compute_statistics(folder, fields, learning.add)
        whole_profile = learned_profile | dict(profile or {})
        write_yaml(folder / "job.yaml", job, JOB_COMMENT.format(path=out / "job.yaml"))
        write_yaml(folder / "statistics.yaml", statistics, SCHEMA_COMMENT)
        (folder / "profile.json").write_text(json.dumps(whole_profile, indent=2) + "\n", encoding="utf-8")
        rename_folder(folder, out)
    return whole_profile


class _Counter:
    """Tells how many of some rows are done."""

    def __init__(self, doing: str, rows: int | None, progress: Progress) -> None:
        self._doing, self._rows, self._progress, self._done = doing, rows, progress, 0

    def add(self, rows: int) -> None:
        self._done += rows
        self._progress(self._doing, self._done / self._rows if self._rows else None)

    def passing(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            yield table
            self.add(len(table))


def _regroup(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `rows` rows; the last one may be shorter."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) < rows:
            continue
        joined = pa.concat_tables(waiting)
        whole = len(joined) // rows * rows
        yield from (joined.slice(start, rows) for start in range(0, whole, rows))
        waiting = [joined.slice(whole)]
    rest = pa.concat_tables(waiting) if waiting else None
    if rest is not None and len(rest):
        yield rest


def write_files(folder: Path, groups: Iterable[pa.Table], rows_per_file: int, compression: str = "zstd") -> int:
    """Write row groups to part-00000.parquet, part-00001.parquet, ...; gives the number of rows."""
    rows = files = room = 0
    writer: pq.ParquetWriter | None = None
    try:
        for group in groups:
            if writer is None or len(group) > room:
                if writer is not None:
                    writer.close()
                path = folder / f"part-{files:05d}.parquet"
                writer = pq.ParquetWriter(
                    path,
                    group.schema,
                    compression=compression,
                    write_page_checksum=True,
                    use_dictionary=_repeating(group),
                )
                files, room = files + 1, rows_per_file
            writer.write_table(group, row_group_size=len(group))
            rows, room = rows + len(group), room - len(group)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _repeating(group: pa.Table) -> list[str]:
    """The paths of columns in which a value comes twice or more on average. A dictionary of others would be larger than
    their values, and slower to read and to write."""
    found = []
    for name in group.column_names:
        path, values = name, group[name]
        while pa.types.is_nested(values.type) and hasattr(values.type, "value_type"):
            path, values = f"{path}.list.element", pc.list_flatten(values)
        if 2 * pc.count_distinct(values).as_py() <= len(values) - values.null_count:
            found.append(path)
    return found
