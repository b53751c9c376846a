"""Row groups that do not fit into memory raise an error before training; the cache uses a share of the free memory."""

import os
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets import memory_check as memory
from asymdiffrec.datasets.memory_check import available_memory, cache_limit, require_memory
from asymdiffrec.datasets.shards import open_shards

ROW_BYTES = 8 + 4 + 10 * 8 + 8
COLUMNS = ["item", "price", "history"]


@pytest.fixture
def shards(tmp_path):
    """Row groups of 1,000, 500, 1,000 and 300 rows."""
    for name, rows in (("a", 1500), ("b", 1300)):
        columns = {"item": range(rows), "price": [0.5] * rows, "history": [[0] * 10] * rows, "more": ["x"] * rows}
        pq.write_table(
            pa.table({k: list(v) for k, v in columns.items()}), tmp_path / f"{name}.parquet", row_group_size=1000
        )
    return open_shards(str(tmp_path))


@pytest.mark.parametrize(("row_groups", "rows"), [(1, 1000), (2, 2000), (3, 2500), (9, 2800)])
def test_the_largest_row_groups_must_fit_into_memory(shards, monkeypatch, row_groups, rows):
    monkeypatch.setattr(memory, "available_memory", lambda: rows * ROW_BYTES)
    require_memory(shards, COLUMNS, row_groups)
    monkeypatch.setattr(memory, "available_memory", lambda: rows * ROW_BYTES - 1)
    with pytest.raises(InputError) as caught:
        require_memory(shards, COLUMNS, row_groups)
    message = str(caught.value)
    assert message.startswith(
        f"{shards.files[0]}, row group 0: 1,000 rows need about 0.00 GiB of memory, column history alone"
    )
    assert f"up to {min(row_groups, 4)} row groups are in memory at a time" in message
    assert "data.lanes" in message
    assert "\n" not in message


def test_the_caches_of_a_host_share_an_eighth_of_its_free_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10_000)
    assert cache_limit(required=2_000, local_world_size=1) == 1_000
    assert cache_limit(required=2_000, local_world_size=4) == 250
    assert cache_limit(required=20_000, local_world_size=1) == 0


def write_cgroups(tmp_path, monkeypatch, limits, version):
    """Put this process into control groups outer/inner with limits; each uses 600 bytes, 100 of them file cache."""
    root, line, names = {
        1: (
            "memory",
            "4:memory:/outer/inner",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
        2: ("", "0::/outer/inner", ("memory.max", "memory.current", "inactive_file")),
    }[version]
    process = tmp_path / "cgroup"
    process.write_text(f"9:name=systemd:/\n{line}\n")
    for path, limit in zip(("outer", "outer/inner"), limits, strict=True):
        folder = tmp_path / root / path
        folder.mkdir(parents=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text("600\n")
        (folder / "memory.stat").write_text(f"{names[2]} 100\nother 5\n")
    monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS_OF_PROCESS", process)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("limits", "left"), [((2000, 5000), 1500), ((5000, 2000), 1500), ((50_000, 60_000), 10_000)])
def test_the_smallest_limit_counts(tmp_path, monkeypatch, version, limits, left):
    write_cgroups(tmp_path, monkeypatch, limits, version)
    assert available_memory() == left


def test_a_group_without_a_limit_is_ignored_and_a_full_group_leaves_nothing(tmp_path, monkeypatch):
    write_cgroups(tmp_path, monkeypatch, ("max", "max"), 2)
    assert available_memory() == 10_000
    (tmp_path / "outer/inner/memory.max").write_text("300\n")
    assert available_memory() == 0


def test_the_host_has_available_memory():
    assert 0 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
