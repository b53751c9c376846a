"""Load the raw tables into a DuckDB database on disk, which reads, sorts and counts on all cores in bounded memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.progress import ProgressCallback
from asymdiffrec.datasets.prepare.table.input_files import FILE_COLUMN, InputFiles, error_line
from asymdiffrec.datasets.prepare.table.recipe import TableConfig
from asymdiffrec.datasets.prepare.table.sql import literal, quote_name

MEMORY_LIMIT = "1GB"
"""Memory limit of DuckDB; Arrow and Python need additional memory"""
MAX_EXAMPLES = 5
"""Maximum number of wrong rows that are shown for each reason"""
MAX_SHOWN_CHARACTERS = 200
"""Maximum number of characters of a wrong line that are shown"""
SPLIT_COLUMN = "__asymdiffrec_split"
"""Column of a loaded table: valid or test for rows from the separate files of a split, null for other rows"""
POLL_SECONDS = 0.2


class Database:
    """A DuckDB database in a temporary folder; the caller deletes the folder. Ctrl-C stops a running query."""

    def __init__(self, folder: Path, progress: ProgressCallback) -> None:
        config: dict[str, Any] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(folder / "spilled"),
            "threads": len(os.sched_getaffinity(0)),
        }
        self._connection = duckdb.connect(str(folder / "raw.duckdb"), config=config)
        self._progress = progress
        self.files = InputFiles(self._connection)
        self.skipped_lines: list[dict[str, Any]] = []
        """Skipped lines of text files: the reason, the number of lines and examples; empty if no lines were skipped"""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def run(self, phase: str, query: str) -> list[tuple[Any, ...]]:
        """Run an SQL statement and return its rows. `phase` describes the work in progress reports and errors.

        Raises InputError if the statement fails.
        """
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(lambda: self._connection.execute(query).fetchall())
            try:
                while not _is_done(work):
                    percent = self._connection.query_progress()
                    self._progress(phase, percent / 100 if percent >= 0 else None)
                return work.result()
            except duckdb.Error as error:
                raise InputError(f"{phase}: {self._describe(error)}") from error
            except BaseException:
                self._connection.interrupt()
                raise

    def load(self, name: str, table: TableConfig, split_files: dict[str, list[str]], skip_bad_rows: bool) -> None:
        """Create a table from files, with the additional columns FILE_COLUMN and SPLIT_COLUMN.

        split_files: {split: its files} for valid and test, if they have separate files.
        skip_bad_rows: skip lines that are not rows of the table, and collect them in `skipped_lines`.

        Raises InputError if no files are found or their columns do not match. If `skip_bad_rows` is false, the first
        line that is not a row raises InputError too.
        """
        created, loaded_files = False, set[str]()
        for split, locations in {"": table.files, **split_files}.items():
            files = self.files.expand(locations, table.hive)
            repeated = [file for index, file in enumerate(files) if file in loaded_files or file in files[:index]]
            if repeated:
                raise InputError(f"{self.files.display_name(repeated[0])}: is named twice; name each file once")
            loaded_files |= set(files)
            for scan in self.files.scans(table, files, skip_bad_rows):
                rows = f"SELECT *, nullif({literal(split)}, '') AS {SPLIT_COLUMN} FROM ({scan})"
                if created:
                    self._require_same_columns(name, rows)
                    statement = f"INSERT INTO {quote_name(name)} BY NAME"
                else:
                    statement = f"CREATE TABLE {quote_name(name)} AS"
                self.run(f"reading {name}", f"{statement} {rows}")
                created = True
        if skip_bad_rows:
            self._collect_skipped_lines()

    def _require_same_columns(self, name: str, rows: str) -> None:
        first = {column for column, *_ in self.run("reading", f"DESCRIBE {quote_name(name)}")}
        other = {column for column, *_ in self.run("reading", f"DESCRIBE {rows}")}
        if first == other:
            return
        (file,) = self.run("reading", f"SELECT {FILE_COLUMN} FROM ({rows}) LIMIT 1") or [("a file",)]
        difference = "has no column" if first - other else "has an additional column"
        column = min(first - other or other - first)
        raise InputError(f"{self.files.display_name(file[0])}: {difference} {column}, unlike the previous files")

    def _collect_skipped_lines(self) -> None:
        first_lines = self.run(
            "reading",
            "SELECT s.file_path, e.line, min(e.error_message), min(e.csv_line) FROM reject_errors e "
            f"JOIN reject_scans s USING (scan_id, file_id) GROUP BY ALL ORDER BY ALL LIMIT {MAX_EXAMPLES}",
        )
        if first_lines:
            # A rejected "line" contains several lines if a quote was not closed.
            distinct = "SELECT DISTINCT scan_id, file_id, line, csv_line FROM reject_errors"
            newlines = "len(rtrim(csv_line, chr(10))) - len(replace(rtrim(csv_line, chr(10)), chr(10), ''))"
            ((lines,),) = self.run("reading", f"SELECT sum(1 + {newlines})::BIGINT FROM ({distinct})")
            examples = [
                f"{self.files.display_name(file)}, line {line}: {_line_problem(message)}: {_shorten(text)}"
                for file, line, message, text in first_lines
            ]
            self.skipped_lines = [{"why": "the line is not a row of the table", "rows": lines, "examples": examples}]

    def column_types(self, table: str) -> dict[str, str]:
        """Return the columns of a table or view with their DuckDB types, without the columns that `load` adds."""
        described = self.run("reading", f"DESCRIBE {quote_name(table)}")
        added = (FILE_COLUMN, SPLIT_COLUMN)
        return {column: duckdb_type for column, duckdb_type, *_ in described if column not in added}

    def stream(self, query: str, rows: int) -> Iterator[pa.Table]:
        """Yield the result of a query in Arrow tables of about `rows` rows. Raises InputError if the query fails."""
        try:
            with self._connection.cursor() as cursor:
                for batch in cursor.sql(query).to_arrow_reader(rows):
                    yield pa.table(batch)
        except duckdb.Error as error:
            raise InputError(f"reading the samples from the temporary database: {self._describe(error)}") from error

    def _describe(self, error: duckdb.Error) -> str:
        """Return an error in one line. For a wrong line of a text file: the file, the line number and the problem."""
        text = str(error)
        line, file = re.search(r"CSV Error on Line: (\d+)", text), re.search(r"^  file = (.*)$", text, re.MULTILINE)
        if line is None or file is None:
            return error_line(error)
        original, _, rest = text.partition("Original Line: ")[2].partition("\n")
        message = re.search(r"^(Expected|Invalid|Value|Maximum|Error|The).*$", rest, re.MULTILINE)
        problem = _line_problem(message[0] if message else "cannot be read")
        return (
            f"{self.files.display_name(file[1])}, line {line[1]}: {problem}: {_shorten(original)}; correct the line, "
            "or skip wrong lines with --bad-rows skip"
        )


def _line_problem(message: str) -> str:
    """Return DuckDB's message about a line, or for a wrong encoding the setting that changes the encoding."""
    if "not utf-8" in message:
        return "is not UTF-8; for Latin-1 files add --set input.encoding=latin-1"
    return message.strip().rstrip(".")[:MAX_SHOWN_CHARACTERS]


def _shorten(text: str) -> str:
    """Return the beginning of a line, for a message."""
    first = text.strip("\n").partition("\n")[0]
    complete = len(first) <= MAX_SHOWN_CHARACTERS and first == text.strip("\n")
    return first if complete else first[:MAX_SHOWN_CHARACTERS] + " ..."


def _is_done(work: Future[Any]) -> bool:
    """Wait for POLL_SECONDS at most and return whether the work is done."""
    try:
        work.exception(timeout=POLL_SECONDS)
    except NotDone:
        return False
    return True
