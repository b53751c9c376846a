"""The files of a raw table: where they are, in which format, and what their columns are called."""

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
from asymdiffrec.datasets.files.locations import filesystem_of, without_secrets
from asymdiffrec.datasets.files.retry import describe_error
from asymdiffrec.datasets.prepare.table.recipe import TableConfig
from asymdiffrec.datasets.prepare.table.sql import literal, literals

FILE = "__asymdiffrec_file"
"""Column of a loaded table with the name of the file that a row came from"""
LONGEST_LINE = 1 << 20
GZIP = b"\x1f\x8b"
"""How files begin that gzip has made"""
OURS = re.compile(r"\bplace\d+://")
"""Schemes that stand for a filesystem"""


@dataclass
class Sources:
    """Files as DuckDB opens them; those of a URI through pyarrow's filesystems, so that every reader here knows the
    same places."""

    database: duckdb.DuckDBPyConnection
    _places: dict[str, pafs.FileSystem] = field(default_factory=dict)
    """The filesystem of each scheme that was made up for one"""

    def expand(self, locations: list[str], hive: bool | None) -> list[str]:
        """The files of paths, folders and what is in them, globs and URIs, those of each in the order of their names.

        Raises InputError where one has none, and where folders are named as Hive's are unless `hive` says what to do.
        """
        files = [file for location in locations for file in self._expanded(location, hive)]
        if not files:
            raise InputError("--input: name at least one file, folder, glob or URI")
        return files

    def _expanded(self, location: str, hive: bool | None) -> list[str]:
        root = location
        if "://" not in location:
            found = _within(location) if os.path.isdir(location) else sorted(glob.glob(location, recursive=True))
            files = [name for name in found if os.path.isfile(name)]
        else:
            _, root = filesystem_of(location)
            files = _remote(location)
        if not files:
            name = without_secrets(location)
            what = "no file matches" if glob.has_magic(name) else "no such file, or a folder without files"
            raise InputError(f"{name}: {what}")
        below = files[0].removeprefix(re.split(r"[*?\[]", root)[0] if root != files[0] else root)
        keys = re.findall(r"([^/=]+)=[^/]*/", below)
        if keys and hive is None:
            raise InputError(
                f"{without_secrets(location)}: has folders named {keys[0]}=...; say with --set input.hive=true that "
                "they make a column of the table, or with input.hive=false that they make none"
            )
        return files if root is location else [self._scheme(location) + name for name in files]

    def _scheme(self, location: str) -> str:
        """A scheme of our own, under which DuckDB opens files in the filesystem of a URI."""
        filesystem, _ = filesystem_of(location)
        for scheme, known in self._places.items():
            if known == filesystem:
                return f"{scheme}://"
        scheme = f"place{len(self._places)}"
        wrapper = type("Wrapper", (_Wrapper,), {"protocol": scheme})
        self.database.register_filesystem(wrapper(filesystem))
        self._places[scheme] = filesystem
        return f"{scheme}://"

    def shown(self, file: str) -> str:
        """A file's name without the scheme that stands for its filesystem."""
        return OURS.sub("", file)

    def scans(self, table: TableConfig, files: list[str], skip: bool) -> Iterator[str]:
        """SQL that reads files, neighbours with the same columns at once, and names the file in FILE.

        Text comes as text without spaces around it, for what it means is found out from all of it. Where `skip`, lines
        that are no rows go to DuckDB's table of rejects. Raises InputError where files do not fit each other.
        """
        named = f"filename={literal(FILE)}, hive_partitioning={literal(table.hive is True)}, hive_types_autocast=false"
        if _is_parquet(table, files):
            self._check_parquet(files)
            yield f"SELECT * FROM read_parquet({_exactly(files)}, {named}, union_by_name=true)"
            return
        first_lines = {file: self._first_line(file, table.encoding) for file in files}
        options = {"delim": table.delimiter or self._delimiter(table, files[0]), "quote": table.quote}
        options |= {"escape": table.quote, "encoding": table.encoding}
        for columns, group in groupby(files, lambda file: self._columns(table, file, first_lines[file], options)):
            types = ", ".join(f"{literal(column)}: 'VARCHAR'" for column in columns)
            settings = "".join(f", {name}={literal(value)}" for name, value in options.items())
            settings += ", store_rejects=true, rejects_limit=0" if skip else ""
            yield (
                f"SELECT trim(COLUMNS(* EXCLUDE ({FILE}))), {FILE} FROM read_csv({_exactly(group)}, auto_detect=false, "
                f"header={literal(table.columns is None)}, {named}, columns={{{types}}}{settings})"
            )

    def _delimiter(self, table: TableConfig, file: str) -> str:
        if re.search(r"\.(tsv|tab)(\.\w+)?$", file):
            return "\t"
        query = f"SELECT Delimiter FROM sniff_csv({literal(glob.escape(file))}, all_varchar=true, ignore_errors=true, "
        query += f"encoding={literal(table.encoding)})"
        try:
            return str(self.database.execute(query).fetchall()[0][0])
        except duckdb.IOException as error:
            raise InputError(f"{self.shown(file)}: cannot be read ({said(error)})") from error
        except duckdb.Error as error:
            raise InputError(f"{self.shown(file)}: found no delimiter in it ({said(error)}); give one") from error

    def _columns(self, table: TableConfig, file: str, line: str, options: dict[str, str]) -> list[str]:
        """The names that a text file's columns have: given, or in its first line."""
        if table.columns is not None:
            return table.columns
        if not line:
            raise InputError(f"{self.shown(file)}: is empty, or its first line is")
        delimiter, quote = options["delim"], options["quote"]
        cells = line.split(delimiter)
        if len(delimiter) == 1 and quote:
            try:
                cells = next(csv.reader([line], delimiter=delimiter, quotechar=quote), [])
            except csv.Error as error:
                raise InputError(f"{self.shown(file)}: its first line cannot be read ({error})") from error
        names = [name.strip() for name in cells]
        odd = [name for name in names if not name or re.fullmatch(r"[-+.\d]+", name)]
        if odd or not names:
            raise InputError(
                f"{self.shown(file)}: its first line has no names of columns ({', '.join(names[:5])}...); "
                "name them with --columns"
            )
        again = [name for name in names if sum(name.lower() == other.lower() for other in names) > 1]
        if again:
            raise InputError(f"{self.shown(file)}: has the column {again[0]} more than once; large and small are one")
        return names

    def _first_line(self, file: str, encoding: str) -> str:
        filesystem, path = self._opened(file)
        try:
            with filesystem.open_input_stream(path) as stream:
                buffered = io.BufferedReader(stream)
                if buffered.peek(2)[:2] == GZIP:
                    raise InputError(f"{self.shown(file)}: is compressed by gzip; its name has to end in .gz")
                text = io.TextIOWrapper(buffered, encoding, "replace", newline="").readline(LONGEST_LINE)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.shown(file)}: cannot be read ({describe_error(error)})") from error
        return text.removeprefix("\ufeff").rstrip("\r\n")

    def _opened(self, file: str) -> tuple[pafs.FileSystem, str]:
        """The filesystem of a file, and its path there."""
        scheme, mark, path = file.partition("://")
        return (self._places[scheme], path) if mark else (pafs.LocalFileSystem(), file)

    def _check_parquet(self, files: list[str]) -> None:
        first: dict[str, tuple[str, pa.DataType]] = {}
        for file in files:
            schema = self._parquet_schema(file)
            lacking = [name for name in first if name not in schema.names]
            if lacking:
                raise InputError(f"{self.shown(file)}: lacks the column {lacking[0]}, unlike the files before it")
            for column in schema:
                where, kind = first.setdefault(column.name, (file, column.type))
                if _family(kind) != _family(column.type) and "null" not in (_family(kind), _family(column.type)):
                    raise InputError(
                        f"{self.shown(file)}: column {column.name} is {column.type}, but {kind} in "
                        f"{self.shown(where)}; a column must have one type"
                    )

    def _parquet_schema(self, file: str) -> pa.Schema:
        filesystem, path = self._opened(file)
        try:
            with filesystem.open_input_file(path) as source:
                return pq.read_schema(source)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.shown(file)}: not a readable Parquet file ({describe_error(error)})") from error


class _Wrapper(ArrowFSWrapper):
    """A filesystem of pyarrow as DuckDB takes it; the first part of a path, such as a bucket, belongs to the path."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.partition("://")[2] if "://" in path else path


def said(error: duckdb.Error) -> str:
    """What DuckDB says of an error, in one line; of one in Python's filesystems, the end of the traceback."""
    lines = [line for line in str(error).split("\n\n")[0].splitlines() if line.strip()]
    text = lines[-1] if lines[0].startswith("Traceback") else " ".join(" ".join(lines).split())
    return OURS.sub("", text)


def _exactly(files: Iterable[str]) -> str:
    """A list of files as DuckDB takes it, for which no character of a name means others."""
    return literals(glob.escape(file) for file in files)


def _within(folder: str) -> list[str]:
    """The files of a folder and of the folders in it."""
    found = (os.path.join(path, name) for path, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(name for name in found if _counts(os.path.relpath(name, folder)))


def _counts(name: str) -> bool:
    """Whether a file is none of the hidden ones and the marks that other writers leave (_SUCCESS)."""
    return not re.search(r"(^|/)[._]", name)


def _remote(location: str) -> list[str]:
    """The files of a URI, which may end in a glob, as paths within its filesystem."""
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
    names = sorted(e.path for e in entries if e.is_file and _counts(os.path.relpath(e.path, folder)))
    return [name for name in names if fnmatch.fnmatch(name, path)] if glob.has_magic(path) else names


def _is_parquet(table: TableConfig, files: list[str]) -> bool:
    if table.format is not None:
        return table.format == "parquet"
    kinds = {file.endswith((".parquet", ".pq")) for file in files}
    if len(kinds) > 1:
        raise InputError(f"{files[0]} and others: Parquet and text in one table; name files of one format")
    return kinds.pop()


def _family(kind: pa.DataType) -> str:
    """What a column's type is about, whatever its width."""
    types = pa.types
    if types.is_dictionary(kind):
        return _family(kind.value_type)
    if types.is_integer(kind) or types.is_floating(kind):
        # Not one family: an integer of more than 53 bits loses its last ones among floats.
        return "integer" if types.is_integer(kind) else "floating"
    if types.is_null(kind) or types.is_temporal(kind):
        return "null" if types.is_null(kind) else "time"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return f"list of {_family(kind.value_type)}"
    return str(kind)
