"""Files that appear under their names when they are complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from asymdiffrec.base import InputError


@contextmanager
def new_parquet(out: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of `out`; where the block fails nothing is left. Raises InputError where `out` is there already, or no
    file can be."""
    if out.exists():
        raise InputError(f"{out}: exists; choose another name or remove it")
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writer = pq.ParquetWriter(partial, schema)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); choose another name") from error
    try:
        with writer:
            yield writer
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)


def whole_file(path: Path, content: bytes) -> None:
    """Write a file, in place of one that is there, at once."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
