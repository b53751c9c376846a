"""Folders that appear under their names when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asymdiffrec.base import InputError


def require_new(out: Path) -> None:
    """Raise InputError where `out` exists: nothing of the user's is ever overwritten."""
    if os.path.lexists(out):
        raise InputError(f"{out} exists; choose another folder or remove it")


def put_in_place(folder: Path, out: Path) -> None:
    """Rename, unless another run has made `out` meanwhile."""
    require_new(out)
    try:
        folder.rename(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from error


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone at the end. Raises InputError where none can be made."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another folder") from error
    with folder as path:
        yield Path(path)
