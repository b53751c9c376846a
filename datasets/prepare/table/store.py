"""Raw tables in a database on disk: DuckDB reads, sorts and counts them with all cores, in bounded memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.progress import Progress
from asymdiffrec.datasets.prepare.table.recipe import TableConfig
from asymdiffrec.datasets.prepare.table.sources import FILE, Sources, said
from asymdiffrec.datasets.prepare.table.sql import literal, quoted

MEMORY = "1GB"
"""What DuckDB may take; what Arrow and Python take comes on top"""
EXAMPLES = 5
SHOWN = 200
"""Characters of a line that is wrong that are shown"""
SPLIT = "__asymdiffrec_split"
"""Column of a loaded table with the split of files that are one: valid, test, or null"""


class Store:
    """A database in a folder that its user removes. Everything that runs in it can be interrupted."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        config: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": str(folder / "spilled"),
            "threads": len(os.sched_getaffinity(0)),
        }
        self._database = duckdb.connect(str(folder / "raw.duckdb"), config=config)
        self._progress = progress
        self.sources = Sources(self._database)
        self.refused: list[dict[str, Any]] = []
        """Lines of text files that were no rows: reason, rows, examples; only where bad rows are skipped"""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def run(self, doing: str, query: str) -> list[tuple[Any, ...]]:
        """The rows that a statement gives. Raises InputError where it fails."""
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(lambda: self._database.execute(query).fetchall())
            try:
                while not _done(work):
                    share = self._database.query_progress()
                    self._progress(doing, share / 100 if share >= 0 else None)
                return work.result()
            except duckdb.Error as error:
                raise InputError(f"{doing}: {self.told(error)}") from error
            except BaseException:
                self._database.interrupt()
                raise

    def load(self, name: str, table: TableConfig, extra: dict[str, list[str]], skip: bool) -> None:
        """Make a table of files, with the columns FILE and SPLIT; `extra` are the files of splits of their own.

        Where `skip`, lines that are no rows are counted in `refused`. Raises InputError with the file and line
        otherwise, and where there are no files or they do not fit each other.
        """
        made, known = False, set[str]()
        for split, locations in {"": table.files, **extra}.items():
            files = self.sources.expand(locations, table.hive)
            again = [file for place, file in enumerate(files) if file in known or file in files[:place]]
            if again:
                raise InputError(f"{self.sources.shown(again[0])}: is named twice; its rows would be there twice")
            known |= set(files)
            for scan in self.sources.scans(table, files, skip):
                rows = f"SELECT *, nullif({literal(split)}, '') AS {SPLIT} FROM ({scan})"
                how = f"INSERT INTO {quoted(name)} BY NAME" if made else f"CREATE TABLE {quoted(name)} AS"
                if made:
                    self._require_same_columns(name, rows)
                self.run(f"reading {name}", f"{how} {rows}")
                made = True
        if skip:
            self._count_rejects()

    def _require_same_columns(self, name: str, rows: str) -> None:
        first = [column for column, *_ in self.run("reading", f"DESCRIBE {quoted(name)}")]
        other = [column for column, *_ in self.run("reading", f"DESCRIBE {rows}")]
        lacking, added = set(first) - set(other), set(other) - set(first)
        if lacking or added:
            (file,) = self.run("reading", f"SELECT {FILE} FROM ({rows}) LIMIT 1") or [("a file",)]
            what = f"lacks the column {sorted(lacking)[0]}" if lacking else f"adds the column {sorted(added)[0]}"
            raise InputError(f"{self.sources.shown(file[0])}: {what}, unlike the files before it")

    def _count_rejects(self) -> None:
        found = self.run(
            "reading",
            "SELECT s.file_path, e.line, min(e.error_message), min(e.csv_line) FROM reject_errors e "
            f"JOIN reject_scans s USING (scan_id, file_id) GROUP BY ALL ORDER BY ALL LIMIT {EXAMPLES}",
        )
        if found:
            # A quote that is never closed takes the lines after it along.
            distinct = "SELECT DISTINCT scan_id, file_id, line, csv_line FROM reject_errors"
            newlines = "len(rtrim(csv_line, chr(10))) - len(replace(rtrim(csv_line, chr(10)), chr(10), ''))"
            ((lines,),) = self.run("reading", f"SELECT sum(1 + {newlines})::BIGINT FROM ({distinct})")
            examples = [
                f"{self.sources.shown(file)}, line {line}: {_said(message)}: {_cut(text)}"
                for file, line, message, text in found
            ]
            self.refused = [{"why": "no row of the table", "rows": lines, "examples": examples}]

    def types(self, table: str) -> dict[str, str]:
        """The columns of a table or view and their DuckDB types, without those that `load` adds."""
        described = self.run("reading", f"DESCRIBE {quoted(table)}")
        return {column: kind for column, kind, *_ in described if column not in (FILE, SPLIT)}

    def stream(self, query: str, rows: int) -> Iterator[pa.Table]:
        """The result of a query in Arrow tables of some `rows` rows. Raises InputError where it fails."""
        try:
            with self._database.cursor() as cursor:
                for batch in cursor.sql(query).to_arrow_reader(rows):
                    yield pa.table(batch)
        except duckdb.Error as error:
            raise InputError(f"sorting: {self.told(error)}") from error

    def told(self, error: duckdb.Error) -> str:
        """What an error says in one line: of a text file, the file, the line, and what is wrong with it."""
        text = str(error)
        line, file = re.search(r"CSV Error on Line: (\d+)", text), re.search(r"^  file = (.*)$", text, re.MULTILINE)
        if line is None or file is None:
            return said(error)
        original, _, rest = text.partition("Original Line: ")[2].partition("\n")
        why = re.search(r"^(Expected|Invalid|Value|Maximum|Error|The).*$", rest, re.MULTILINE)
        return (
            f"{self.sources.shown(file[1])}, line {line[1]}: {_said(why[0] if why else 'cannot be read')}: "
            f"{_cut(original)}; mend it, or leave such lines out with --bad-rows skip"
        )


def _said(message: str) -> str:
    """DuckDB's words for what is wrong with a line, with the mend that is ours."""
    if "not utf-8" in message:
        return "is not UTF-8; is it encoding: latin-1?"
    return message.strip().rstrip(".")[:SHOWN]


def _cut(text: str) -> str:
    """The beginning of a line, as much as a message needs."""
    first = text.strip("\n").partition("\n")[0]
    return first if len(first) <= SHOWN and first == text.strip("\n") else first[:SHOWN] + " ..."


def _done(work: Future[Any]) -> bool:
    try:
        work.exception(timeout=0.2)
    except NotYet:
        return False
    return True
