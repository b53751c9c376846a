"""Compare the memory that decoded row groups need, computed from the footers, with the free memory of the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from asymdiffrec.base import InputError
from asymdiffrec.datasets.shards import Shards

CGROUP_ROOT, CGROUPS_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

CACHE_SHARE = 1 / 8
"""Share of a host's free memory that the row group caches of its workers may fill."""


def required_memory(shards: Shards, columns: list[str], row_groups: int) -> int:
    """Return the bytes that the `row_groups` largest row groups need after decoding.

    All row groups are assumed to have the bytes per row of the largest row group, see `Shards.decoded_bytes`.
    """
    largest = int(shards.sizes.max())
    rows = int(np.sort(shards.sizes)[-row_groups:].sum())
    return sum(shards.decoded_bytes(columns).values()) * rows // largest


def require_memory(shards: Shards, columns: list[str], row_groups: int) -> None:
    """Raise InputError if the `row_groups` largest row groups need more memory after decoding than is available."""
    required, available = required_memory(shards, columns, row_groups), available_memory()
    if required > available:
        bytes_of = shards.decoded_bytes(columns)
        widest = max(bytes_of, key=lambda column: bytes_of[column])
        largest = int(np.argmax(shards.sizes))
        raise InputError(
            f"{shards.location_of(largest)}: {shards.sizes[largest]:,} rows need about "
            f"{_gibibytes(sum(bytes_of.values()))} of memory, column {widest} alone {_gibibytes(bytes_of[widest])}; "
            f"up to {min(row_groups, len(shards.sizes))} row groups are in memory at a time and need "
            f"{_gibibytes(required)}, but {_gibibytes(available)} are free. Lower data.lanes, use more hosts, or "
            "write smaller row groups with `asymdiffrec prepare table`"
        )


def cache_limit(required: int, local_world_size: int) -> int:
    """Return the maximum size of one worker's row group cache in bytes, in addition to the row groups in use.

    `required` is the number of bytes of the row groups in use by all workers of the host. CACHE_SHARE of the remaining
    free memory is divided equally among these workers.
    """
    return int(max(0, available_memory() - required) * CACHE_SHARE) // local_world_size


def available_memory() -> int:
    """Return the bytes that this process can still allocate: the host's free memory, or less under a cgroup limit."""
    return max(0, min([psutil.virtual_memory().available, *_available_in_cgroups()]))


def _available_in_cgroups() -> list[int]:
    """Return the bytes that are left under the memory limit of each control group that contains this process."""
    available = []
    for line in CGROUPS_OF_PROCESS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":  # version 1
            root = CGROUP_ROOT / "memory"
            files = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        elif not controllers:  # version 2
            root, files = CGROUP_ROOT, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (size := _available_in(folder, *files)) is not None:
                available.append(size)
    return available


def _available_in(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """Return limit - usage + cached pages of files, in bytes; None if the control group has no limit."""
    try:
        allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the group is not visible in the container, or is the root group, which has no limit
        return None
    return None if allowed == "max" else int(allowed) - used + int(statistics.get(cached, 0))


def _gibibytes(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
