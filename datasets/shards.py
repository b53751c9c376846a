"""The Parquet files of one split: their row groups, known from the footers, and reading one of them."""

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
from asymdiffrec.datasets.files.locations import file_info, filesystem_of, part_of, shown
from asymdiffrec.datasets.files.retry import passing, patiently, reason

KEPT_FOOTERS = 256
"""Files whose parsed footers are kept: parsing one again costs about as much as reading a small row group"""
FULL_DICTIONARY = 2**20
"""Bytes of a dictionary at which writers go over to plain strings"""


@dataclass(frozen=True)
class RowGroup:
    file: int
    index: int
    rows: int


@dataclass(frozen=True)
class Shards:
    """The files of a split in the order of their names, and their row groups in the order of the files."""

    filesystem: pafs.FileSystem
    files: tuple[str, ...]
    schemas: tuple[pa.Schema, ...]
    bytes: tuple[int, ...]
    """Size of each file"""
    row_groups: tuple[RowGroup, ...]
    empty: tuple[str, ...] = ()
    """Files without rows, which are left out"""
    _footers: dict[int, pq.FileMetaData] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Rows of each row group, int64."""
        return np.array([group.rows for group in self.row_groups], dtype=np.int64)

    @property
    def rows(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def record(self) -> dict[str, list[int]]:
        """The names of all files with the rows of their row groups: what `open_shards` takes to open them again."""
        record: dict[str, list[int]] = {_name(file): [] for file in (*self.files, *self.empty)}
        for group in self.row_groups:
            record[_name(self.files[group.file])].append(group.rows)
        return record

    def place(self, row_group: int) -> str:
        """Where a row group is, for messages."""
        group = self.row_groups[row_group]
        return f"{self.files[group.file]}, row group {group.index}"

    def read(self, row_group: int, columns: list[str]) -> pa.Table:
        """The named columns of one row group, in one thread: whoever wants more reads several row groups at once.

        A connection that fails is tried again. Raises InputError where that does not help, where the file is gone or
        is not the one that was opened, where memory does not suffice, and where a page is damaged, with its column.
        """
        try:
            return patiently(partial(self._read, row_group, columns))
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise InputError(self._failure(row_group, columns, error)) from error

    def _read(self, row_group: int, columns: list[str]) -> pa.Table:
        group = self.row_groups[row_group]
        with self.filesystem.open_input_file(self.files[group.file]) as source:
            if source.size() != self.bytes[group.file]:
                raise self._changed(group.file, f"has {source.size():,} bytes instead of {self.bytes[group.file]:,}")
            footer = self._footers.get(group.file) or pq.read_metadata(source)
            self._keep(group.file, footer)
            file = pq.ParquetFile(
                source,
                metadata=footer,
                page_checksum_verification=True,
                read_dictionary=_in_dictionaries(footer, group.index, columns),
            )
            return file.read_row_group(group.index, columns=columns, use_threads=False)

    def _keep(self, file: int, footer: pq.FileMetaData) -> None:
        if file not in self._footers:
            if len(self._footers) >= KEPT_FOOTERS:
                self._footers.clear()
            self._footers[file] = footer

    def _changed(self, file: int, how: str) -> InputError:
        return InputError(
            f"{self.files[file]}: {how} since it was opened; files must not change while they are read, start again"
        )

    def _failure(self, row_group: int, columns: list[str], error: BaseException) -> str:
        """What to say of a row group that cannot be read: the first column that is damaged is looked for."""
        group, place = self.row_groups[row_group], self.place(row_group)
        if isinstance(error, MemoryError):
            return (
                f"{place}: no memory is left for {group.rows:,} rows ({reason(error)}); lower data.lanes, or write "
                "smaller row groups with `asymdiffrec prepare table`"
            )
        if isinstance(error, FileNotFoundError):
            return f"{place}: cannot be read, the file is gone"
        if passing(error):
            return f"{place}: cannot be read ({reason(error)})"
        file = _file(self.filesystem, self.files[group.file])
        if [rows for rows in file.sizes if rows] != self.record[_name(self.files[group.file])]:
            raise self._changed(group.file, "has other row groups")
        for column in columns:
            try:
                self._read(row_group, [column])
            except (pa.ArrowException, OSError, MemoryError) as narrower:
                return f"{place}, column {column}: cannot be read ({reason(narrower)})"
        return f"{place}: cannot be read ({reason(error)})"

    def decoded_bytes(self, columns: list[str]) -> dict[str, int]:
        """What the columns of the largest row group take in memory once decoded, at most, as its footer has it.

        8 bytes an id, null or not, 4 a float, and 8 more a row of a list.
        """
        group = self.row_groups[int(np.argmax(self.sizes))]
        if group.file not in self._footers:
            self._keep(group.file, _footer(self.filesystem, self.files[group.file])[-1])
        found = self._footers[group.file].row_group(group.index)
        leaves = [column for column in self.schemas[group.file] for _ in range(_leaves(column.type))]
        bytes_of = dict.fromkeys(columns, 0)
        for number, column in enumerate(leaves):
            if column.name in bytes_of:
                leaf = found.column(number)
                width = 4 if leaf.physical_type in ("FLOAT", "DOUBLE") else 8
                bytes_of[column.name] += width * leaf.num_values + (
                    8 * group.rows if pa.types.is_nested(column.type) else 0
                )
        return bytes_of


def _in_dictionaries(footer: pq.FileMetaData, row_group: int, columns: list[str]) -> list[str]:
    """The columns of text that are written as indices into a dictionary and can stay so: each string is read once."""
    wanted, found = set(columns), footer.row_group(row_group)
    texts = [
        found.column(number)
        for number in range(footer.num_columns)
        if (leaf := footer.schema.column(number)).path in wanted and leaf.logical_type.type == "STRING"
    ]
    return [
        text.path_in_schema
        for text in texts
        if text.has_dictionary_page and text.total_uncompressed_size < FULL_DICTIONARY
    ]


def _leaves(kind: pa.DataType) -> int:
    """Columns that Parquet keeps for one of a type, nested or not."""
    return sum(_leaves(kind.field(number).type) for number in range(kind.num_fields)) or 1


def open_shards(location: str, record: Mapping[str, Sequence[int]] | None = None) -> Shards:
    """Read the footers of every Parquet file directly in a folder, or of one file. Files without rows are left out.

    With the `record` of shards that were opened before, exactly these files are opened; `added_files` tells of others.
    Raises InputError where there is no file or no row, where a file is empty, truncated or not Parquet, or where one of
    the record is gone or has other row groups.
    """
    filesystem, path = filesystem_of(location)
    files = _files(filesystem, path, location)
    if record is not None:
        gone = sorted(record.keys() - set(map(_name, files)))
        if gone:
            raise InputError(
                f"{part_of(shown(location), gone[0])}: is gone, but the run was started with it; "
                "put it back or start a new run"
            )
        files = [file for file in files if _name(file) in record]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(_file, filesystem), files))
    if record is not None:
        for file in found:
            _require_as_recorded(file, record)
    full = [file for file in found if any(file.sizes)]
    if not full:
        raise InputError(f"{shown(location)}: the Parquet files hold no rows")
    return Shards(
        filesystem,
        files=tuple(file.path for file in full),
        schemas=tuple(file.schema for file in full),
        bytes=tuple(file.bytes for file in full),
        row_groups=tuple(
            RowGroup(number, index, rows)
            for number, file in enumerate(full)
            for index, rows in enumerate(file.sizes)
            if rows
        ),
        empty=tuple(file.path for file in found if not any(file.sizes)),
    )


def _require_as_recorded(file: _File, record: Mapping[str, Sequence[int]]) -> None:
    before, now = list(record[_name(file.path)]), [rows for rows in file.sizes if rows]
    if before != now:
        raise InputError(
            f"{file.path}: has {len(now)} row groups with {sum(now):,} rows, other ones than the {len(before)} with "
            f"{sum(before):,} rows that the run was started with; put the file back or start a new run"
        )


def added_files(location: str, record: Mapping[str, Sequence[int]]) -> list[str]:
    """The names of the Parquet files at a location that are not in the record of its shards."""
    filesystem, path = filesystem_of(location)
    return [name for name in map(_name, _files(filesystem, path, location)) if name not in record]


def _name(file: str) -> str:
    return PurePosixPath(file).name


def _files(filesystem: pafs.FileSystem, path: str, location: str) -> list[str]:
    """The Parquet files of a folder in the order of their names, or the one file."""
    info = file_info(filesystem, path, location)
    folder = info.type == pafs.FileType.Directory
    entries = file_info(filesystem, pafs.FileSelector(path), location) if folder else [info]
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{shown(location)}: no such file or folder")
    files = sorted(entry.path for entry in entries if entry.is_file and (entry.extension == "parquet" or not folder))
    if not files:
        raise InputError(f"{shown(location)}: no *.parquet file in this folder")
    return files


@dataclass(frozen=True)
class _File:
    """What is known of a file from its footer."""

    path: str
    bytes: int
    schema: pa.Schema
    sizes: list[int]
    """Rows of each row group"""


def _file(filesystem: pafs.FileSystem, path: str) -> _File:
    size, schema, footer = _footer(filesystem, path)
    return _File(path, size, schema, [footer.row_group(index).num_rows for index in range(footer.num_row_groups)])


def _footer(filesystem: pafs.FileSystem, path: str) -> tuple[int, pa.Schema, pq.FileMetaData]:
    """A file's size, its columns and its footer."""

    def read() -> tuple[int, pa.Schema, pq.FileMetaData]:
        with filesystem.open_input_file(path) as source:
            file = pq.ParquetFile(source)
            return source.size(), file.schema_arrow, file.metadata

    try:
        return patiently(read)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({reason(error)})") from error
