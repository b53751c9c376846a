"""Which ids of a field are frequent: exact, and on disk where they are too many for memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import Self, TypeVar

import duckdb
import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError

WAITING = 1 << 21
MEMORY = "512MB"

T = TypeVar("T")


class RowCounts:
    """In how many rows each id of some fields was, counted by DuckDB, which spills to a temporary folder.

    The folder is made where `tempfile` makes its own: `TMPDIR` moves it to a larger disk. It needs 16 bytes for each
    distinct id of each row group. Raises InputError where it is full.
    """

    def __init__(self, fields: list[str], threads: int) -> None:
        self._tables = {field: f"field_{number}" for number, field in enumerate(fields)}
        self._waiting: dict[str, list[pa.Table]] = {field: [] for field in fields}
        self._threads = threads
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        folder = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="asymdiffrec-ids-"))
        database = duckdb.connect(
            f"{folder}/counts",
            config={
                "threads": self._threads,
                "memory_limit": MEMORY,
                "temp_directory": f"{folder}/spilled",
                "preserve_insertion_order": False,
            },
        )
        self._opened.enter_context(database)
        for table in self._tables.values():
            database.execute(f"CREATE TABLE {table} (id BIGINT, rows BIGINT)")
        return database

    def add(self, field: str, ids: pa.Array, rows: pa.Array) -> None:
        """Take in distinct ids [V] int64 of a row group, and in how many of its rows each of them is."""
        self._waiting[field].append(pa.table({"id": ids, "rows": rows}))
        if sum(len(part) for parts in self._waiting.values() for part in parts) > WAITING:
            self._guarded(self._write)

    def _write(self) -> None:
        for field, parts in self._waiting.items():
            if parts:
                self._database.register("waiting", pa.concat_tables(parts))
                self._database.execute(f"INSERT INTO {self._tables[field]} SELECT id, rows FROM waiting")
                self._database.unregister("waiting")
                parts.clear()

    def frequent(self, field: str, least: int) -> tuple[np.ndarray, int]:
        """The ids that were in at least `least` rows, ascending, [V] int64, and the number of all distinct ids."""

        def count() -> tuple[np.ndarray, int]:
            self._write()
            self._database.execute(
                "CREATE OR REPLACE TEMP TABLE counted AS "
                f"SELECT id, sum(rows) AS rows FROM {self._tables[field]} GROUP BY id"
            )
            distinct = self._database.execute("SELECT count(*) FROM counted").fetchall()[0][0]
            found = self._database.execute("SELECT id FROM counted WHERE rows >= ? ORDER BY id", [least])
            return found.fetchnumpy()["id"], distinct

        return self._guarded(count)

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{tempfile.gettempdir()}: cannot count ids there ({reason}); TMPDIR names another folder"
            ) from error
