"""Write files and folders under a temporary name, and give them their final name when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from asymdiffrec.base import InputError


@contextmanager
def new_parquet_file(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of the new file `path`. If the `with` block raises, the unfinished file is deleted.

    Raises InputError if `path` exists or cannot be written.
    """
    if path.exists():
        raise InputError(f"{path}: the file exists; choose another name or remove it")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = pq.ParquetWriter(partial, schema)
    except OSError as error:
        raise InputError(f"{path}: cannot write this file ({error.strerror}); choose another name") from error
    try:
        with writer:
            yield writer
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, or replace it atomically: a reader sees either the complete old or the complete new content."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_absent(folder: Path) -> None:
    """Raise InputError if `folder` exists, so that no file of the user is overwritten."""
    if os.path.lexists(folder):
        raise InputError(f"{folder}: the folder exists; choose another folder or remove it")


@contextmanager
def temporary_folder_for(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder in the parent of `folder`, so on the same filesystem, and remove it at the end.

    Raises InputError if the temporary folder cannot be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be created ({error.strerror}); choose another folder") from error
    with temporary as path:
        yield Path(path)


def rename_folder(complete: Path, folder: Path) -> None:
    """Rename the folder `complete` to its final name `folder`.

    Raises InputError if another process has created `folder` in the meantime.
    """
    require_absent(folder)
    try:
        complete.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be created ({error.strerror}); choose another folder") from error
