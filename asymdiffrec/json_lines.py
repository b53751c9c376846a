"""JSON-lines files: read their complete lines, and follow a file to which another process appends."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json_lines(path: Path) -> list[Any]:
    """Return the values of all complete lines, or an empty list if the file does not exist.

    A last line without a newline is left out: its writer has not finished it, or the disk was full.
    """
    return JsonLinesReader(path).read_new()[0]


class JsonLinesReader:
    """A reader of the lines that were appended to a JSON-lines file since the last call.

    If another file of the same name replaces the file, the new file is read from its start.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        """Start at the beginning of the file, or at its current end if `from_end` is true."""
        self._path = path
        self._inode = self._offset = 0
        if from_end and path.exists():
            self._inode, self._offset = path.stat().st_ino, path.stat().st_size

    def read_new(self) -> tuple[list[Any], bool]:
        """Return the values of the complete lines since the last call, and whether the file is a new file."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return [], False
        with file:
            inode = os.fstat(file.fileno()).st_ino
            is_new_file = inode != self._inode
            file.seek(0 if is_new_file else self._offset)
            values = []
            while (line := file.readline()).endswith(b"\n"):
                self._inode, self._offset = inode, file.tell()
                values.append(json.loads(line))
        return values, is_new_file


@contextmanager
def follow_json_lines(
    path: Path, handle: Callable[[list[Any], bool], None], *, from_end: bool = False, seconds: float = 0.2
) -> Iterator[None]:
    """Call `handle(values, is_new_file)` in a thread with the new lines of a file, until the block ends.

    The file need not exist yet. It is read every `seconds`, and once more at the end of the block, even if the block
    raises. See `JsonLinesReader` for `from_end` and `is_new_file`.
    """
    ended = threading.Event()
    reader = JsonLinesReader(path, from_end=from_end)

    def follow() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(seconds)
            values, is_new_file = reader.read_new()
            if values:
                handle(values, is_new_file)

    thread = threading.Thread(target=follow, daemon=True, name=f"follow {path.name}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
