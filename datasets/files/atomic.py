"""Files and folders that get their final name only when they are complete."""

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
    """Yield a writer of the new file `path`; if the block raises, no file remains.

    Raises InputError if `path` exists or cannot be written.
    """
    if path.exists():
        raise InputError(f"{path}: exists; choose another name or remove it")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = pq.ParquetWriter(partial, schema)
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); choose another name") from error
    try:
        with writer:
            yield writer
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, replacing an old one in one step: a reader sees the whole old or the whole new content."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def require_absent(folder: Path) -> None:
    """Raise InputError if `folder` exists: no file of the user is ever overwritten."""
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists; choose another folder or remove it")


@contextmanager
def temporary_folder_for(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, on the same filesystem, and remove it at the end.

    Raises InputError if it cannot be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another folder") from error
    with temporary as path:
        yield Path(path)


def rename_folder(complete: Path, folder: Path) -> None:
    """Rename the complete folder to its final name. Raises InputError if another process has created that meanwhile."""
    require_absent(folder)
    try:
        complete.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
