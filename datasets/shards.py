"""The Parquet files of one split: their row groups, known from the footers, and reading one of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from asymdiffrec.datasets.errors import InputError


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
    row_groups: tuple[RowGroup, ...]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Rows of each row group, int64."""
        return np.array([group.rows for group in self.row_groups], dtype=np.int64)

    @property
    def rows(self) -> int:
        return int(self.sizes.sum())

    def place(self, row_group: int) -> str:
        """Where a row group is, for messages."""
        group = self.row_groups[row_group]
        return f"{self.files[group.file]}, row group {group.index}"

    def read(self, row_group: int, columns: list[str]) -> pa.Table:
        """The named columns of one row group."""
        group = self.row_groups[row_group]
        try:
            with self.filesystem.open_input_file(self.files[group.file]) as source:
                return pq.ParquetFile(source).read_row_group(group.index, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.place(row_group)}: cannot be read ({_first_line(error)})") from error


def filesystem_of(location: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path within it of a local path or a URI (s3://, gs://, hdfs://, file://)."""
    try:
        return pafs.FileSystem.from_uri(location) if "://" in location else (pafs.LocalFileSystem(), location)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{location}: {_first_line(error)}") from error


def open_shards(location: str) -> Shards:
    """Read the footers of every Parquet file directly in a folder, or of one file. Files without rows are left out.

    Raises InputError where there is no file or no row, or where a file is empty, truncated or not Parquet.
    """
    filesystem, path = filesystem_of(location)
    files = _files(filesystem, path, location)
    with ThreadPoolExecutor(8) as pool:
        footers = list(pool.map(lambda file: _footer(filesystem, file), files))
    full = [(file, schema, sizes) for file, (schema, sizes) in zip(files, footers, strict=True) if sum(sizes)]
    if not full:
        raise InputError(f"{location}: the Parquet files hold no rows")
    groups = tuple(
        RowGroup(number, index, rows)
        for number, (_, _, sizes) in enumerate(full)
        for index, rows in enumerate(sizes)
        if rows
    )
    return Shards(filesystem, tuple(file for file, _, _ in full), tuple(schema for _, schema, _ in full), groups)


def _files(filesystem: pafs.FileSystem, path: str, location: str) -> list[str]:
    """The Parquet files of a folder in the order of their names, or the one file."""
    try:
        info = filesystem.get_file_info(path)
        folder = info.type == pafs.FileType.Directory
        entries = filesystem.get_file_info(pafs.FileSelector(path)) if folder else [info]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{location}: cannot be read ({_first_line(error)})") from error
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{location}: no such file or folder")
    files = sorted(entry.path for entry in entries if entry.is_file and (entry.extension == "parquet" or not folder))
    if not files:
        raise InputError(f"{location}: no *.parquet file in this folder")
    return files


def _footer(filesystem: pafs.FileSystem, file: str) -> tuple[pa.Schema, list[int]]:
    """The columns of a file, and the rows of its row groups."""
    try:
        with filesystem.open_input_file(file) as source:
            footer = pq.ParquetFile(source)
            metadata = footer.metadata
            return footer.schema_arrow, [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable Parquet file ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
