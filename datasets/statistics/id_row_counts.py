"""Count exactly in how many rows each id occurs; if the ids do not fit into memory, the counts are on disk."""

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

MAX_PENDING_IDS = 1 << 21
"""Number of ids that are collected in memory before they are written to the database"""
MEMORY_LIMIT = "512MB"

T = TypeVar("T")


class IdRowCounts:
    """The number of rows that contain each id of some fields, counted by DuckDB in a temporary folder.

    The environment variable TMPDIR can put the folder on a larger disk. The folder needs 16 bytes for each distinct id
    of each row group. Raises InputError if the disk is full.
    """

    def __init__(self, fields: list[str], threads: int) -> None:
        self._tables = {field: f"field_{number}" for number, field in enumerate(fields)}
        self._pending: dict[str, list[pa.Table]] = {field: [] for field in fields}
        self._threads = threads
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="asymdiffrec-ids-"))
        database = duckdb.connect(
            f"{folder}/counts",
            config={
                "threads": self._threads,
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": f"{folder}/spilled",
                "preserve_insertion_order": False,
            },
        )
        self._resources.enter_context(database)
        for table in self._tables.values():
            database.execute(f"CREATE TABLE {table} (id BIGINT, rows BIGINT)")
        return database

    def add(self, field: str, ids: pa.Array, rows: pa.Array) -> None:
        """Add the distinct `ids` [V] int64 of a row group; `rows` [V] is the number of its rows with each id."""
        self._pending[field].append(pa.table({"id": ids, "rows": rows}))
        if sum(len(part) for parts in self._pending.values() for part in parts) > MAX_PENDING_IDS:
            self._run(self._write)

    def _write(self) -> None:
        for field, parts in self._pending.items():
            if parts:
                self._database.register("pending", pa.concat_tables(parts))
                self._database.execute(f"INSERT INTO {self._tables[field]} SELECT id, rows FROM pending")
                self._database.unregister("pending")
                parts.clear()

    def frequent_ids(self, field: str, min_rows: int) -> tuple[np.ndarray, int]:
        """Return the ids in at least `min_rows` rows, ascending, [V] int64, and the number of distinct ids."""

        def count() -> tuple[np.ndarray, int]:
            self._write()
            self._database.execute(
                "CREATE OR REPLACE TEMP TABLE counted AS "
                f"SELECT id, sum(rows) AS rows FROM {self._tables[field]} GROUP BY id"
            )
            distinct = self._database.execute("SELECT count(*) FROM counted").fetchall()[0][0]
            frequent = self._database.execute("SELECT id FROM counted WHERE rows >= ? ORDER BY id", [min_rows])
            return frequent.fetchnumpy()["id"], distinct

        return self._run(count)

    def _run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`; turn a DuckDB error into an InputError."""
        try:
            return work()
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{tempfile.gettempdir()}: cannot count ids in this folder ({reason}); set TMPDIR to a folder on a "
                "larger disk"
            ) from error
