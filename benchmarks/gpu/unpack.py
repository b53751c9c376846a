"""Unpack libraries and packages on the GPU machine, and check that they load.

This module needs only Python and torch.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import this_machine
from benchmarks.gpu.packed_library import checked, unpack

ROOT = Path(__file__).parents[2]
DRIVER_LIBRARY = "libnvidia-ml.so.1"
"""A library of the GPU driver that FBGEMM is linked with. It may be in a folder that the loader does not search"""
DRIVER_FOLDERS = ("/usr/local/nvidia", "/usr/lib", "/usr/lib64")
LOAD = """
import json
import fbgemm_gpu, torch, torchrec
import torchrec.distributed.model_parallel, torchrec.distributed.train_pipeline
from benchmarks._report import machine, versions
names = ("asymdiffrec", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyarrow", "triton")
print(json.dumps({"machine": machine(), "versions": versions(*names)}))
"""
"""Program that imports the libraries of a training and prints the machine and the versions"""


class UnpackError(Exception):
    """The pack is for another machine or is missing, or the libraries do not load."""


def unpack_site(source: Path, site: Path) -> None:
    """Unpack a folder of `pack.pack_site` into `site`, unless `site` has the same pack already."""
    manifest = json.loads((source / "manifest.json").read_text())
    done = site / "manifest.json"
    if done.exists() and json.loads(done.read_text()) == manifest:
        return
    site.mkdir(parents=True, exist_ok=True)
    archive = checked(source / "packages.tar.xz", manifest["packages"])
    with tarfile.open(fileobj=io.BytesIO(archive)) as packages:
        packages.extractall(site, filter="data")
    with ProcessPoolExecutor() as pool:
        libraries = manifest["libraries"].items()
        for task in [pool.submit(unpack, source / f"{name}.xz", entry, site) for name, entry in libraries]:
            task.result()
    done.write_text(json.dumps(manifest))


def is_for(source: Path, any_machine: bool) -> bool:
    """Return whether a pack is for this host and must be unpacked.

    Without `any_machine`, raises UnpackError if the pack is missing or for another machine. With `any_machine`, returns
    False in these cases, and the caller uses the installed libraries. With `any_machine`, a pack is also for a host
    without a GPU if all versions match.
    """
    manifest = source / "manifest.json"
    if not manifest.exists():
        if any_machine:
            return False
        raise UnpackError(f"{manifest}: does not exist; pack first (make gpu-pack)")
    wanted, here = json.loads(manifest.read_text())["machine"], this_machine()
    if any_machine and here["capability"] is None:
        wanted = wanted | {"capability": None}
    if here == wanted:
        return True
    if any_machine:
        return False
    todo = "change benchmarks/gpu/machine.py and pack again (make gpu-pack)"
    raise UnpackError(f"packed for {wanted}, but this host has {here}; {todo}")


def environment(site: Path) -> dict[str, str]:
    """Return the environment variables that make the unpacked packages and this project importable."""
    folders = (path.parent for folder in DRIVER_FOLDERS for path in Path(folder).rglob(DRIVER_LIBRARY))
    libraries = [str(next(folders, "")), os.environ.get("LD_LIBRARY_PATH", "")]
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "LD_LIBRARY_PATH": os.pathsep.join(path for path in libraries if path),
        "NCCL_SOCKET_IFNAME": "lo",
    }


def load(variables: dict[str, str]) -> dict[str, Any]:
    """Import the libraries in a subprocess; return the machine and the versions.

    Raises UnpackError if an import fails.
    """
    command = [sys.executable, "-c", LOAD]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    if process.returncode:
        raise UnpackError(f"the libraries do not load: {process.stderr.strip().splitlines()[-1]}\n{process.stderr}")
    document: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return document
