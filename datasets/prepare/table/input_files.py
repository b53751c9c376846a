"""Find the input files of a raw table, and detect their format and the names of their columns."""

from __future__ import annotations

import csv
import fnmatch
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePosixPath

import duckdb
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.column_types import is_list
from asymdiffrec.datasets.files.locations import filesystem_of, without_secrets
from asymdiffrec.datasets.files.retry import describe_error
from asymdiffrec.datasets.prepare.table.recipe import TableConfig
from asymdiffrec.datasets.prepare.table.sql import list_literal, literal

FILE_COLUMN = "__asymdiffrec_file"
"""Column of a loaded table with the name of the row's file"""
MAX_HEADER_CHARACTERS = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
"""The first bytes of a gzip file"""
SCHEME = re.compile(r"\bpyarrow\d+://")
"""The URI schemes under which pyarrow's filesystems are registered in DuckDB"""


@dataclass
class InputFiles:
    """The input files of a DuckDB database. Files with a URI are opened with pyarrow's filesystems."""

    database: duckdb.DuckDBPyConnection
    _filesystems: dict[str, pafs.FileSystem] = field(default_factory=dict)
    """The registered filesystems by scheme"""

    def expand(self, locations: list[str], hive: bool | None) -> list[str]:
        """Return the files of paths, folders, globs and URIs; the files of each location are sorted by name.

        Files in subfolders are included. Raises InputError if a location has no file, or if `hive` is None and folders
        are named key=value, as in Hive.
        """
        files = [file for location in locations for file in self._expand(location, hive)]
        if not files:
            raise InputError("--input: no files; specify at least one file, folder, glob or URI")
        return files

    def _expand(self, location: str, hive: bool | None) -> list[str]:
        root = location
        if "://" not in location:
            names = _files_in(location) if os.path.isdir(location) else sorted(glob.glob(location, recursive=True))
            files = [name for name in names if os.path.isfile(name)]
        else:
            _, root = filesystem_of(location)
            files = _remote_files(location)
        if not files:
            name = without_secrets(location)
            problem = "no file matches" if glob.has_magic(name) else "no such file, or a folder without files"
            raise InputError(f"{name}: {problem}")
        below = files[0].removeprefix(re.split(r"[*?\[]", root)[0] if root != files[0] else root)
        keys = re.findall(r"([^/=]+)=[^/]*/", below)
        if keys and hive is None:
            raise InputError(
                f"{without_secrets(location)}: has folders named {keys[0]}=...; use --set input.hive=true to make "
                f"a column {keys[0]} from the folder names, or --set input.hive=false to ignore them"
            )
        return files if root is location else [self._scheme(location) + name for name in files]

    def _scheme(self, location: str) -> str:
        """Register the filesystem of a URI in DuckDB, if it is not registered yet, and return its scheme."""
        filesystem, _ = filesystem_of(location)
        for scheme, registered in self._filesystems.items():
            if registered == filesystem:
                return f"{scheme}://"
        scheme = f"pyarrow{len(self._filesystems)}"
        wrapper = type("Wrapper", (_DuckDBFilesystem,), {"protocol": scheme})
        self.database.register_filesystem(wrapper(filesystem))
        self._filesystems[scheme] = filesystem
        return f"{scheme}://"

    def display_name(self, file: str) -> str:
        """Return a file name for messages, without the registered scheme."""
        return SCHEME.sub("", file)

    def scans(self, table: TableConfig, files: list[str], skip_bad_rows: bool) -> Iterator[str]:
        """Yield SQL that reads the files and adds FILE_COLUMN. Consecutive files with equal columns share a scan.

        Text is read as strings without surrounding spaces; types are inferred later, from all rows. If `skip_bad_rows`
        is true, DuckDB writes lines that are not rows to its reject tables. Raises InputError if the columns of the
        files do not match.
        """
        hive = literal(table.hive is True)
        options = f"filename={literal(FILE_COLUMN)}, hive_partitioning={hive}, hive_types_autocast=false"
        if _is_parquet(table, files):
            self._check_parquet(files)
            yield f"SELECT * FROM read_parquet({_exact_names(files)}, {options}, union_by_name=true)"
            return
        first_lines = {file: self._first_line(file, table.encoding) for file in files}
        dialect = {"delim": table.delimiter or self._detect_delimiter(table, files[0]), "quote": table.quote}
        dialect |= {"escape": table.quote, "encoding": table.encoding}
        for columns, group in groupby(files, lambda file: self._column_names(table, file, first_lines[file], dialect)):
            types = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in columns)
            settings = "".join(f", {name}={literal(value)}" for name, value in dialect.items())
            settings += ", store_rejects=true, rejects_limit=0" if skip_bad_rows else ""
            yield (
                f"SELECT trim(COLUMNS(* EXCLUDE ({FILE_COLUMN}))), {FILE_COLUMN} "
                f"FROM read_csv({_exact_names(group)}, auto_detect=false, "
                f"header={literal(table.columns is None)}, {options}, columns={{{types}}}{settings})"
            )

    def _detect_delimiter(self, table: TableConfig, file: str) -> str:
        if re.search(r"\.(tsv|tab)(\.\w+)?$", file):
            return "\t"
        query = f"SELECT Delimiter FROM sniff_csv({literal(glob.escape(file))}, all_varchar=true, ignore_errors=true, "
        query += f"encoding={literal(table.encoding)})"
        try:
            return str(self.database.execute(query).fetchall()[0][0])
        except duckdb.IOException as error:
            raise InputError(f"{self.display_name(file)}: cannot be read ({error_line(error)})") from error
        except duckdb.Error as error:
            raise InputError(
                f"{self.display_name(file)}: no delimiter was detected ({error_line(error)}); set it with --delimiter"
            ) from error

    def _column_names(self, table: TableConfig, file: str, line: str, dialect: dict[str, str]) -> list[str]:
        """Return the column names of a text file: the names in the recipe, or else in the first line of the file."""
        if table.columns is not None:
            return table.columns
        name = self.display_name(file)
        if not line:
            raise InputError(f"{name}: the file or its first line is empty; the first line must have the column names")
        delimiter, quote = dialect["delim"], dialect["quote"]
        cells = line.split(delimiter)
        if len(delimiter) == 1 and quote:
            try:
                cells = next(csv.reader([line], delimiter=delimiter, quotechar=quote), [])
            except csv.Error as error:
                raise InputError(f"{name}: the first line cannot be read ({error})") from error
        columns = [cell.strip() for cell in cells]
        not_names = [column for column in columns if not column or re.fullmatch(r"[-+.\d]+", column)]
        if not_names or not columns:
            raise InputError(
                f"{name}: the first line has no column names ({', '.join(columns[:5])}...); set them with --columns"
            )
        repeated = [column for column in columns if sum(column.lower() == other.lower() for other in columns) > 1]
        if repeated:
            raise InputError(
                f"{name}: has the column {repeated[0]} more than once; names that differ only in case are the same"
            )
        return columns

    def _first_line(self, file: str, encoding: str) -> str:
        filesystem, path = self._filesystem_and_path(file)
        try:
            with filesystem.open_input_stream(path) as stream:
                buffered = io.BufferedReader(stream)
                if buffered.peek(2)[:2] == GZIP_MAGIC:
                    raise InputError(f"{self.display_name(file)}: is a gzip file, so its name must end in .gz")
                text = io.TextIOWrapper(buffered, encoding, "replace", newline="").readline(MAX_HEADER_CHARACTERS)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.display_name(file)}: cannot be read ({describe_error(error)})") from error
        return text.removeprefix("\ufeff").rstrip("\r\n")

    def _filesystem_and_path(self, file: str) -> tuple[pafs.FileSystem, str]:
        scheme, mark, path = file.partition("://")
        return (self._filesystems[scheme], path) if mark else (pafs.LocalFileSystem(), file)

    def _check_parquet(self, files: list[str]) -> None:
        """Raise InputError if the Parquet files have different columns, or different type families for a column."""
        first: dict[str, tuple[str, pa.DataType]] = {}
        for file in files:
            schema = self._parquet_schema(file)
            absent = [name for name in first if name not in schema.names]
            if absent:
                raise InputError(
                    f"{self.display_name(file)}: has no column {absent[0]}, but {self.display_name(files[0])} has it"
                )
            for column in schema:
                other, arrow_type = first.setdefault(column.name, (file, column.type))
                families = {_type_family(arrow_type), _type_family(column.type)}
                if len(families) > 1 and "null" not in families:
                    raise InputError(
                        f"{self.display_name(file)}: column {column.name} is {column.type}, but {arrow_type} in "
                        f"{self.display_name(other)}; a column must have one type in all files"
                    )

    def _parquet_schema(self, file: str) -> pa.Schema:
        filesystem, path = self._filesystem_and_path(file)
        try:
            with filesystem.open_input_file(path) as source:
                return pq.read_schema(source)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{self.display_name(file)}: not a readable Parquet file ({describe_error(error)})"
            ) from error


class _DuckDBFilesystem(ArrowFSWrapper):
    """A pyarrow filesystem with the fsspec interface that DuckDB needs.

    Paths keep their first part, such as the bucket; only SCHEME:// is removed.
    """

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.partition("://")[2] if "://" in path else path


def error_line(error: duckdb.Error) -> str:
    """Return the message of a DuckDB error in one line; of a Python traceback, return the last line."""
    lines = [line for line in str(error).split("\n\n")[0].splitlines() if line.strip()]
    text = lines[-1] if lines[0].startswith("Traceback") else " ".join(" ".join(lines).split())
    return SCHEME.sub("", text)


def _exact_names(files: Iterable[str]) -> str:
    """Return file names as an SQL list, with all wildcard characters escaped."""
    return list_literal(glob.escape(file) for file in files)


def _files_in(folder: str) -> list[str]:
    """Return the files of a folder and its subfolders."""
    names = (os.path.join(path, name) for path, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(name for name in names if not _is_hidden(os.path.relpath(name, folder)))


def _is_hidden(name: str) -> bool:
    """Return whether the name of a file or of one of its folders begins with . or _, for example _SUCCESS."""
    return re.search(r"(^|/)[._]", name) is not None


def _remote_files(location: str) -> list[str]:
    """Return the files of a URI as paths in its filesystem. The URI can contain a glob."""
    filesystem, path = filesystem_of(location)
    folder = path if not glob.has_magic(path) else str(PurePosixPath(re.split(r"[*?\[]", path)[0] + "x").parent)
    try:
        info = filesystem.get_file_info(folder)
        if info.type == pafs.FileType.File:
            return [path]
        if info.type == pafs.FileType.NotFound:
            return []
        entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{without_secrets(location)}: cannot be read ({describe_error(error)})") from error
    names = sorted(e.path for e in entries if e.is_file and not _is_hidden(os.path.relpath(e.path, folder)))
    return [name for name in names if fnmatch.fnmatch(name, path)] if glob.has_magic(path) else names


def _is_parquet(table: TableConfig, files: list[str]) -> bool:
    if table.format is not None:
        return table.format == "parquet"
    formats = {file.endswith((".parquet", ".pq")) for file in files}
    if len(formats) > 1:
        raise InputError(f"{files[0]} and others: Parquet and text in one table; specify only files of one format")
    return formats.pop()


def _type_family(arrow_type: pa.DataType) -> str:
    """Return the name of a family of types. Types of a family differ only in width or encoding."""
    types = pa.types
    if types.is_dictionary(arrow_type):
        return _type_family(arrow_type.value_type)
    if types.is_integer(arrow_type):
        return "integer"
    if types.is_floating(arrow_type):  # a separate family: a float loses the last bits of large integers
        return "floating"
    if types.is_null(arrow_type) or types.is_temporal(arrow_type):
        return "null" if types.is_null(arrow_type) else "time"
    if types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_string_view(arrow_type):
        return "string"
    if is_list(arrow_type):
        return f"list of {_type_family(arrow_type.value_type)}"
    return str(arrow_type)
