"""Tests of packing and unpacking libraries and packages. The wheels are artificial."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import pack, packages
from benchmarks.gpu.machine import MACHINE, this_machine
from benchmarks.gpu.packed_library import pack as pack_library
from benchmarks.gpu.packed_library import unpack
from benchmarks.gpu.unpack import UnpackError, environment, is_for, unpack_site

ROOT = Path(__file__).parents[3]
LIBRARY = b"begin" + bytes(1000) + b"middle" + bytes(50) + b"end"
BLANK = [(5, 1000), (1011, 50)]
INIT = packages.COMPATIBILITY_TABLE + b"}\n"


def wheel(folder: Path, *files: str) -> Path:
    path = folder / "fbgemm_gpu-1.6.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fbgemm_gpu/__init__.py", INIT)
        archive.writestr("fbgemm_gpu/a.so", LIBRARY)
        archive.writestr("fbgemm_gpu/tests/test_a.py", b"")
        for name in files:
            archive.writestr(name, b"")
    return path


def site(folder: Path, **changes: Any) -> Path:
    """Write a folder in the format of `pack.pack_site`, with one library; return it."""
    folder.mkdir()
    archive = packages.packages_archive([wheel(folder)], ROOT)
    (folder / "packages.tar.xz").write_bytes(packages.compressed(archive))
    entry = pack_library(LIBRARY, "fbgemm_gpu/a.so", BLANK, folder / "a.so.xz")
    digest = hashlib.sha256(archive).hexdigest()
    manifest = {"machine": MACHINE, "wheels": [], "packages": digest, "libraries": {"a.so": entry}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return folder


def test_a_library_is_the_same_after_packing(tmp_path: Path) -> None:
    entry = pack_library(LIBRARY, "package/a.so", BLANK, tmp_path / "a.so.xz")
    unpack(tmp_path / "a.so.xz", entry, tmp_path / "out")
    assert (tmp_path / "out" / "package" / "a.so").read_bytes() == LIBRARY


def test_a_damaged_library_is_named(tmp_path: Path) -> None:
    entry = pack_library(LIBRARY, "package/a.so", BLANK, tmp_path / "a.so.xz")
    entry["sha256"] = "0" * 64
    with pytest.raises(ValueError, match=r"a\.so\.xz: damaged; pack again"):
        unpack(tmp_path / "a.so.xz", entry, tmp_path / "out")


def test_the_archive_has_the_packages_and_shims_but_no_library(tmp_path: Path) -> None:
    archive = packages.packages_archive([wheel(tmp_path)], ROOT)
    assert archive == packages.packages_archive([wheel(tmp_path)], ROOT)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        names = members.getnames()
        file = members.extractfile("fbgemm_gpu/__init__.py")
        assert file is not None
        assert b'"1.6": "2.11"' in file.read()
    assert set(packages.SHIMS) <= set(names)
    assert not any(name.endswith(".so") or "/tests/" in name for name in names)
    assert any(name.startswith("asymdiffrec-") and name.endswith("METADATA") for name in names)


def test_an_fbgemm_that_has_the_shimmed_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SHIMS are for FBGEMM 1\.6\.0 only"):
        packages.packages_archive([wheel(tmp_path, "fbgemm_gpu/tbe/config/__init__.py")], ROOT)


def test_versions_of_small_packages_are_pinned() -> None:
    pinned = packages.pinned(ROOT)
    assert len(pinned) == len(packages.SMALL_PACKAGES)
    assert all("==" in requirement for requirement in pinned)


def test_a_packed_member_is_not_packed_again(tmp_path: Path) -> None:
    path = wheel(tmp_path)
    pack.pack_member(path, "fbgemm_gpu/a.so", tmp_path)
    assert json.loads((tmp_path / "a.so.json").read_text())["size"] == len(LIBRARY)
    (tmp_path / "a.so.xz").write_bytes(b"as it was")
    pack.pack_member(path, "fbgemm_gpu/a.so", tmp_path)
    assert (tmp_path / "a.so.xz").read_bytes() == b"as it was"


def test_a_site_is_unpacked_once(tmp_path: Path) -> None:
    source, out = site(tmp_path / "source"), tmp_path / "site"
    unpack_site(source, out)
    assert (out / "fbgemm_gpu" / "a.so").read_bytes() == LIBRARY
    (out / "fbgemm_gpu" / "a.so").write_bytes(b"as it was")
    unpack_site(source, out)
    assert (out / "fbgemm_gpu" / "a.so").read_bytes() == b"as it was"
    assert environment(out)["PYTHONPATH"].startswith(f"{out}:{ROOT}")


def test_a_damaged_archive_of_packages_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"packages\.tar\.xz: damaged"):
        unpack_site(site(tmp_path / "source", packages="0" * 64), tmp_path / "site")


def test_a_pack_for_another_machine_is_refused(tmp_path: Path) -> None:
    source = site(tmp_path / "source", machine={**this_machine(), "torch": "1.0"})
    assert not is_for(source, any_machine=True)
    with pytest.raises(UnpackError, match=r"packed for \{.*'torch': '1\.0'.*but this host has"):
        is_for(source, any_machine=False)
    with pytest.raises(UnpackError, match=r"manifest\.json: does not exist; pack first \(make gpu-pack\)"):
        is_for(tmp_path / "nothing", any_machine=False)


def test_a_machine_without_gpu_accepts_a_pack_for_its_versions(tmp_path: Path) -> None:
    source = site(tmp_path / "source", machine={**this_machine(), "capability": [9, 0]})
    assert is_for(source, any_machine=True) == (this_machine()["capability"] in (None, [9, 0]))
