"""Whether the row groups that a reader holds fit into memory: known from the footers, before one is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from asymdiffrec.base import InputError
from asymdiffrec.datasets.shards import Shards

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def require_memory(shards: Shards, columns: list[str], held: int) -> None:
    """Raise InputError where the `held` largest row groups, decoded, need more memory than there is.

    What a row takes is taken from the largest row group (`Shards.decoded_bytes`).
    """
    bytes_of = shards.decoded_bytes(columns)
    largest = int(np.argmax(shards.sizes))
    rows = int(shards.sizes[largest])
    held_rows = int(np.sort(shards.sizes)[-held:].sum())
    needed, room = sum(bytes_of.values()) * held_rows // rows, available_memory()
    if needed > room:
        widest = max(bytes_of, key=lambda column: bytes_of[column])
        raise InputError(
            f"{shards.place(largest)}: {rows:,} rows take about {_gigabytes(sum(bytes_of.values()))}, most of it the "
            f"column {widest} ({_gigabytes(bytes_of[widest])}); up to {min(held, len(shards.sizes))} row groups are "
            f"held at a time, {_gigabytes(needed)}, and {_gigabytes(room)} of memory are free. Lower data.lanes, use "
            "more workers on more machines, or write smaller row groups with `asymdiffrec prepare table`"
        )


def available_memory() -> int:
    """Bytes that this process may still take: those free on the machine, or fewer where a control group has a limit."""
    return max(0, min([psutil.virtual_memory().available, *_left_by_groups()]))


def _left_by_groups() -> list[int]:
    """What the memory limit of each control group around this process leaves; cached pages of files do not count."""
    left = []
    for line in OWN.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:
            root, names = CGROUPS, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (room := _left_by(folder, *names)) is not None:
                left.append(room)
    return left


def _left_by(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # no such group in this container's view, or the root, which has no limit
        return None
    return None if allowed == "max" else int(allowed) - used + int(statistics.get(cached, 0))


def _gigabytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
