"""A shared library without its blank parts, compressed; and the library again from that.

Needs only the standard library: it also runs where nothing is installed yet.
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
    """Path of the library below the folder of packages"""
    size: int
    """Bytes of the library, blank parts included"""
    blank: list[list[int]]
    """Start and size of each blank part, in bytes and in ascending order"""
    sha256: str
    """Checksum of the parts that are not blank"""


def pack(library: bytes, path: str, blank: list[tuple[int, int]], target: Path) -> Entry:
    """Write the parts of a library that are not blank to `target`, compressed; return its entry of the manifest."""
    parts, offset = bytearray(), 0
    for start, size in [*blank, (len(library), 0)]:
        parts += library[offset:start]
        offset = start + size
    target.write_bytes(lzma.compress(bytes(parts), lzma.FORMAT_XZ, filters=FILTERS))
    digest = hashlib.sha256(parts).hexdigest()
    return {"path": path, "size": len(library), "blank": [list(part) for part in blank], "sha256": digest}


def unpack(source: Path, entry: Entry, folder: Path) -> None:
    """Write the library below `folder`, blank parts as holes. Raises ValueError where the source is damaged."""
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
    """Return the content of an .xz file. Raises ValueError where it is not the content that was packed."""
    content: Any = lzma.decompress(source.read_bytes())
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{source}: damaged; pack again (make gpu-pack)")
    return bytes(content)
