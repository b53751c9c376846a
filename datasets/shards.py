"""The Parquet files of one split and their row groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from asymdiffrec.base import InputError
from asymdiffrec.datasets.files.locations import file_info, filesystem_of, join_location, without_secrets
from asymdiffrec.datasets.files.retry import describe_error, is_transient, with_retries

MAX_CACHED_FOOTERS = 256
"""Maximum number of parsed footers in memory. Parsing a footer takes about as long as reading a small row group."""
FULL_DICTIONARY_BYTES = 2**20
"""Size of a dictionary at which Parquet writers switch to plain strings."""


@dataclass(frozen=True)
class RowGroup:
    """A row group that is not empty."""

    file: int
    """Index of the file in `Shards.files`."""
    index: int
    """Index of the row group in the file."""
    rows: int
    """Number of rows."""


@dataclass(frozen=True)
class Shards:
    """The Parquet files of a split, ordered by name, and their row groups, ordered by file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pq.write_table(pa.table({"item": [7, 8, 9]}), f"{folder}/a.parquet", row_group_size=2)
    ...     shards = open_shards(folder)
    ...     shards.sizes.tolist(), shards.read(1, ["item"]).to_pydict()
    ([2, 1], {'item': [9]})
    """

    filesystem: pafs.FileSystem
    files: tuple[str, ...]
    schemas: tuple[pa.Schema, ...]
    """Arrow schema of each file."""
    bytes: tuple[int, ...]
    """Size of each file in bytes."""
    row_groups: tuple[RowGroup, ...]
    empty: tuple[str, ...] = ()
    """Files without rows; they are not in `files`."""
    _footers: dict[int, pq.FileMetaData] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of rows of each row group, int64."""
        return np.array([group.rows for group in self.row_groups], dtype=np.int64)

    @property
    def rows(self) -> int:
        """Number of rows of all files together."""
        return int(self.sizes.sum())

    @cached_property
    def record(self) -> dict[str, list[int]]:
        """{file name: number of rows of each non-empty row group}. With it `open_shards` opens the same files again."""
        record: dict[str, list[int]] = {_name(file): [] for file in (*self.files, *self.empty)}
        for group in self.row_groups:
            record[_name(self.files[group.file])].append(group.rows)
        return record

    def location_of(self, row_group: int) -> str:
        """Return the file and the index of a row group, for error messages."""
        group = self.row_groups[row_group]
        return f"{self.files[group.file]}, row group {group.index}"

    def read(self, row_group: int, columns: list[str]) -> pa.Table:
        """Return the named columns of one row group, read in one thread; callers read row groups in parallel.

        Failed connections are retried. Raises InputError if all retries fail, if the file is deleted or has changed
        since it was opened, if memory is exhausted, or if a page is damaged; the error then names the column.
        """
        try:
            return with_retries(partial(self._read, row_group, columns))
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise InputError(self._describe_failure(row_group, columns, error)) from error

    def _read(self, row_group: int, columns: list[str]) -> pa.Table:
        group = self.row_groups[row_group]
        with self.filesystem.open_input_file(self.files[group.file]) as source:
            if source.size() != self.bytes[group.file]:
                raise self._changed(group.file, f"has {source.size():,} bytes instead of {self.bytes[group.file]:,}")
            footer = self._footers.get(group.file) or pq.read_metadata(source)
            self._cache_footer(group.file, footer)
            file = pq.ParquetFile(
                source,
                metadata=footer,
                page_checksum_verification=True,
                read_dictionary=_dictionary_columns(footer, group.index, columns),
            )
            return file.read_row_group(group.index, columns=columns, use_threads=False)

    def _cache_footer(self, file: int, footer: pq.FileMetaData) -> None:
        if file not in self._footers:
            if len(self._footers) >= MAX_CACHED_FOOTERS:
                self._footers.clear()
            self._footers[file] = footer

    def _changed(self, file: int, change: str) -> InputError:
        return InputError(
            f"{self.files[file]}: the file changed after it was opened: it {change}; files must not change during a "
            "run; start again"
        )

    def _describe_failure(self, row_group: int, columns: list[str], error: BaseException) -> str:
        """Return the error message for a row group that cannot be read; it names the first damaged column."""
        group, location = self.row_groups[row_group], self.location_of(row_group)
        if isinstance(error, MemoryError):
            return (
                f"{location}: no memory is left for {group.rows:,} rows ({describe_error(error)}); lower data.lanes, "
                "or write smaller row groups with `asymdiffrec prepare table`"
            )
        if isinstance(error, FileNotFoundError):
            return f"{location}: cannot be read, the file no longer exists"
        if is_transient(error):
            return f"{location}: cannot be read ({describe_error(error)})"
        footer = _read_footer(self.filesystem, self.files[group.file])
        if [rows for rows in footer.sizes if rows] != self.record[_name(self.files[group.file])]:
            raise self._changed(group.file, "has other row groups")
        for column in columns:
            try:
                self._read(row_group, [column])
            except (pa.ArrowException, OSError, MemoryError) as error_of_column:
                return f"{location}, column {column}: cannot be read ({describe_error(error_of_column)})"
        return f"{location}: cannot be read ({describe_error(error)})"

    def decoded_bytes(self, columns: list[str]) -> dict[str, int]:
        """Return an upper bound of the decoded size in bytes of each column of the largest row group.

        It counts 8 bytes per id or null, 4 bytes per float, and 8 more bytes per row of a list column. The numbers of
        values come from the footer.
        """
        group = self.row_groups[int(np.argmax(self.sizes))]
        if group.file not in self._footers:
            self._cache_footer(group.file, _read_metadata(self.filesystem, self.files[group.file])[-1])
        metadata = self._footers[group.file].row_group(group.index)
        leaves = [column for column in self.schemas[group.file] for _ in range(_count_leaves(column.type))]
        bytes_of = dict.fromkeys(columns, 0)
        for number, column in enumerate(leaves):
            if column.name in bytes_of:
                leaf = metadata.column(number)
                width = 4 if leaf.physical_type in ("FLOAT", "DOUBLE") else 8
                offsets = 8 * group.rows if pa.types.is_nested(column.type) else 0
                bytes_of[column.name] += width * leaf.num_values + offsets
        return bytes_of


def _dictionary_columns(footer: pq.FileMetaData, row_group: int, columns: list[str]) -> list[str]:
    """Return the string columns that are completely dictionary-encoded. Each of their strings is decoded only once."""
    wanted, metadata = set(columns), footer.row_group(row_group)
    string_columns = [
        metadata.column(number)
        for number in range(footer.num_columns)
        if (leaf := footer.schema.column(number)).path in wanted and leaf.logical_type.type == "STRING"
    ]
    return [
        column.path_in_schema
        for column in string_columns
        if column.has_dictionary_page and column.total_uncompressed_size < FULL_DICTIONARY_BYTES
    ]


def _count_leaves(column_type: pa.DataType) -> int:
    """Return the number of Parquet columns that store one column of an Arrow type."""
    return sum(_count_leaves(column_type.field(number).type) for number in range(column_type.num_fields)) or 1


def open_shards(location: str, record: Mapping[str, Sequence[int]] | None = None) -> Shards:
    """Read the footers of one Parquet file, or of all Parquet files in a folder, without subfolders.

    `record`: the property `Shards.record` of an earlier opening; only its files are opened. `added_files` returns the
    other files.

    Raises InputError if no file is found or all files have no rows, if a file is empty, truncated or not Parquet, or if
    a file of the record does not exist any more or has other row groups.
    """
    filesystem, path = filesystem_of(location)
    files = _parquet_files(filesystem, path, location)
    if record is not None:
        gone = sorted(record.keys() - set(map(_name, files)))
        if gone:
            raise InputError(
                f"{join_location(without_secrets(location), gone[0])}: no longer exists, but the run started with "
                "this file; restore it or start a new run"
            )
        files = [file for file in files if _name(file) in record]
    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(partial(_read_footer, filesystem), files))
    if record is not None:
        for footer in footers:
            _require_recorded_sizes(footer, record)
    with_rows = [footer for footer in footers if any(footer.sizes)]
    if not with_rows:
        raise InputError(f"{without_secrets(location)}: the Parquet files hold no rows")
    return Shards(
        filesystem,
        files=tuple(footer.path for footer in with_rows),
        schemas=tuple(footer.schema for footer in with_rows),
        bytes=tuple(footer.bytes for footer in with_rows),
        row_groups=tuple(
            RowGroup(number, index, rows)
            for number, footer in enumerate(with_rows)
            for index, rows in enumerate(footer.sizes)
            if rows
        ),
        empty=tuple(footer.path for footer in footers if not any(footer.sizes)),
    )


def _require_recorded_sizes(footer: _Footer, record: Mapping[str, Sequence[int]]) -> None:
    recorded, sizes = list(record[_name(footer.path)]), [rows for rows in footer.sizes if rows]
    if recorded != sizes:
        raise InputError(
            f"{footer.path}: has {len(sizes)} row groups with {sum(sizes):,} rows, but the run started with other "
            f"row groups, {len(recorded)} with {sum(recorded):,} rows; restore the file or start a new run"
        )


def added_files(location: str, record: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the names of the Parquet files at a location that are not in `record`, see `Shards.record`."""
    filesystem, path = filesystem_of(location)
    return [name for name in map(_name, _parquet_files(filesystem, path, location)) if name not in record]


def _name(file: str) -> str:
    return PurePosixPath(file).name


def _parquet_files(filesystem: pafs.FileSystem, path: str, location: str) -> list[str]:
    """Return the Parquet files in a folder, ordered by name; if the location is a file, return only this file."""
    info = file_info(filesystem, path, location)
    is_folder = info.type == pafs.FileType.Directory
    entries = file_info(filesystem, pafs.FileSelector(path), location) if is_folder else [info]
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{without_secrets(location)}: no such file or folder")
    files = sorted(entry.path for entry in entries if entry.is_file and (entry.extension == "parquet" or not is_folder))
    if not files:
        raise InputError(f"{without_secrets(location)}: no *.parquet file in this folder")
    return files


@dataclass(frozen=True)
class _Footer:
    """The part of a Parquet footer that stays in memory; a complete footer may have megabytes."""

    path: str
    bytes: int
    """Size of the file in bytes."""
    schema: pa.Schema
    sizes: list[int]
    """Number of rows of each row group."""


def _read_footer(filesystem: pafs.FileSystem, path: str) -> _Footer:
    size, schema, metadata = _read_metadata(filesystem, path)
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    return _Footer(path, size, schema, sizes)


def _read_metadata(filesystem: pafs.FileSystem, path: str) -> tuple[int, pa.Schema, pq.FileMetaData]:
    """Return the size in bytes, the Arrow schema and the complete footer of a file."""

    def read() -> tuple[int, pa.Schema, pq.FileMetaData]:
        with filesystem.open_input_file(path) as source:
            file = pq.ParquetFile(source)
            return source.size(), file.schema_arrow, file.metadata

    try:
        return with_retries(read)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({describe_error(error)})") from error
