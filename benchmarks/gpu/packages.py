"""Download the wheels that a GPU machine lacks, and combine them into one archive."""

from __future__ import annotations

import io
import lzma
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from benchmarks.gpu.machine import MACHINE

SMALL_PACKAGES = (
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "tensordict",
    "pyvers",
    "orjson",
    "importlib_metadata",
)
"""Packages that a machine with torch and common scientific packages lacks. requirements.txt has their versions"""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
"""Platform tags of wheels. pip compares tags exactly, so every accepted tag is listed"""

SHIMS = {
    "fbgemm_gpu/tbe/monitoring/__init__.py": "from fbgemm_gpu.runtime_monitor import *  # noqa: F403\n"
    "from fbgemm_gpu.runtime_monitor import TBEStatsReporterConfig  # noqa: F401\n",
    "fbgemm_gpu/tbe/config/__init__.py": "from fbgemm_gpu.tbe.config.embedding_config import *  # noqa: F403\n",
    "fbgemm_gpu/tbe/config/embedding_config.py": "from fbgemm_gpu.split_table_batched_embeddings_ops_common import (  "
    "# noqa: F401\n    BoundsCheckMode,\n    ComputeDevice,\n    EmbeddingLocation,\n    PoolingMode,\n)\n",
}
"""{file: content} of modules that TorchRec 1.8 imports by their names in FBGEMM 1.8. FBGEMM 1.6 has older names"""
COMPATIBILITY_TABLE = b"_fbgemm_torch_compat_table = {\n"
"""First line of the table {FBGEMM version: torch version} in FBGEMM 1.6.0. Its own version is missing in the table, so
FBGEMM would warn"""


def pinned(project: Path) -> list[str]:
    """Return `NAME==VERSION` of each small package, with the version in the project's requirements.txt."""
    lines = (project / "requirements.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    return [f"{name}=={versions[name].split()[0]}" for name in SMALL_PACKAGES]


def download(requirements: list[str], cache: Path) -> list[Path]:
    """Return the wheels of the requirements for the GPU machine. Download the wheels that `cache` lacks.

    Dependencies of the requirements are not downloaded.
    """
    wheels = []
    for requirement in requirements:
        folder = cache / requirement.replace("==", "-")
        if not list(folder.glob("*.whl")):
            target = ["--python-version", MACHINE["python"], "--implementation", "cp"]
            target += [part for platform in PLATFORMS for part in ("--platform", platform)]
            options = ["--quiet", "--no-deps", "--only-binary=:all:", *target, "--dest", str(folder)]
            subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
        wheels += sorted(folder.glob("*.whl"))
    return wheels


def is_library(member: str) -> bool:
    """Return whether a member of a wheel is a library of FBGEMM. Each library is packed separately."""
    return member.startswith("fbgemm_gpu/") and member.endswith(".so")


def packages_archive(wheels: list[Path], project: Path) -> bytes:
    """Return a tar archive of all files of the wheels and SHIMS, without the libraries of FBGEMM.

    The same wheels give the same bytes. Raises ValueError if SHIMS do not fit the version of FBGEMM.
    """
    files = _project_metadata(project)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if not (is_library(member) or member.endswith("/") or "/tests/" in member):
                    files[member] = archive.read(member)
    text = files["fbgemm_gpu/__init__.py"]
    if COMPATIBILITY_TABLE not in text or any(name in files for name in SHIMS):
        raise ValueError("packages.SHIMS are for FBGEMM 1.6.0 only; adapt them to the version in machine.py")
    files["fbgemm_gpu/__init__.py"] = text.replace(COMPATIBILITY_TABLE, COMPATIBILITY_TABLE + b'    "1.6": "2.11",\n')
    files |= {name: text.encode() for name, text in SHIMS.items()}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    return content.getvalue()


def compressed(archive: bytes) -> bytes:
    """Return an archive in the .xz format."""
    return lzma.compress(archive, preset=9)


def _project_metadata(project: Path) -> dict[str, bytes]:
    """Return the metadata files of an installed asymdiffrec.

    An export records the installed version, but on the GPU machine asymdiffrec is not installed.
    """
    match = re.search(r'__version__ = "(.*)"', (project / "asymdiffrec" / "__init__.py").read_text())
    if match is None:
        raise ValueError(f"{project}/asymdiffrec/__init__.py: defines no __version__")
    metadata = f"Metadata-Version: 2.1\nName: asymdiffrec\nVersion: {match[1]}\n"
    return {f"asymdiffrec-{match[1]}.dist-info/METADATA": metadata.encode()}
