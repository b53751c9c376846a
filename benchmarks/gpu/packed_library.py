"""Compress a shared library without its zero-filled parts, and restore it.

This module needs only the standard library of Python, because it runs before packages are unpacked.
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path
from typing import Any, TypedDict

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 27}]


class Entry(TypedDict):
    """The entry of a packed library in a manifest."""

    path: str
    """Path of the library, relative to the folder of packages"""
    size: int
    """Size of the library in bytes, including its zero-filled parts"""
    blank: list[list[int]]
    """[start, size] of each zero-filled part in bytes, in ascending order"""
    sha256: str
    """SHA-256 of the other parts, joined"""


def pack(library: bytes, path: str, blank: list[tuple[int, int]], target: Path) -> Entry:
    """Write a library to `target`, compressed and without its zero-filled parts `blank`; return its entry."""
    parts, offset = bytearray(), 0
    for start, size in [*blank, (len(library), 0)]:
        parts += library[offset:start]
        offset = start + size
    target.write_bytes(lzma.compress(bytes(parts), lzma.FORMAT_XZ, filters=FILTERS))
    digest = hashlib.sha256(parts).hexdigest()
    return {"path": path, "size": len(library), "blank": [list(part) for part in blank], "sha256": digest}


def unpack(source: Path, entry: Entry, folder: Path) -> None:
    """Restore a library below `folder`. Zero-filled parts become holes. Raises ValueError if the source is damaged."""
    parts = checked(source, entry["sha256"])
    target = folder / entry["path"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        consumed = offset = 0
        for start, size in [*entry["blank"], [entry["size"], 0]]:
            file.seek(offset)
            file.write(parts[consumed : consumed + start - offset])
            consumed, offset = consumed + start - offset, start + size
        file.truncate(entry["size"])


def checked(source: Path, sha256: str) -> bytes:
    """Return the content of an .xz file. Raises ValueError if its SHA-256 is not `sha256`."""
    content: Any = lzma.decompress(source.read_bytes())
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{source}: damaged; pack again (make gpu-pack)")
    return bytes(content)
