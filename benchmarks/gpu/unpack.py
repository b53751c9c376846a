"""Unpack libraries and packages on the GPU machine, and check that they load.

Needs only Python and torch before it has run.
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
"""FBGEMM is linked with it; it comes with the driver, and may lie where the loader does not look"""
DRIVER_FOLDERS = ("/usr/local/nvidia", "/usr/lib", "/usr/lib64")
LOAD = """
import json
import fbgemm_gpu, torch, torchrec
import torchrec.distributed.model_parallel, torchrec.distributed.train_pipeline
from benchmarks._report import machine, versions
names = ("asymdiffrec", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyarrow", "triton")
print(json.dumps({"machine": machine(), "versions": versions(*names)}))
"""
"""Load all that a training needs, and print where it runs"""


class UnpackError(Exception):
    """The pack does not fit this machine, is damaged, or does not load."""


def unpack_site(source: Path, site: Path) -> None:
    """Unpack a folder of `pack.pack_site` into `site`, unless it has this very pack already."""
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
    """Return whether a pack is for this machine, and so is to be unpacked.

    Raises UnpackError where it is not, unless `any_machine` says to use what is installed then. With `any_machine` a
    machine without a GPU counts as the one packed for where its versions do.
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
    raise UnpackError(f"packed for {wanted}, but this machine has {here}; change benchmarks/gpu/machine.py and pack")


def environment(site: Path) -> dict[str, str]:
    """Return the environment variables under which the unpacked packages and this project are imported."""
    folders = (path.parent for folder in DRIVER_FOLDERS for path in Path(folder).rglob(DRIVER_LIBRARY))
    libraries = [str(next(folders, "")), os.environ.get("LD_LIBRARY_PATH", "")]
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "LD_LIBRARY_PATH": os.pathsep.join(path for path in libraries if path),
        "NCCL_SOCKET_IFNAME": "lo",
    }


def load(variables: dict[str, str]) -> dict[str, Any]:
    """Import the libraries in a new process; return the machine and the versions. Raises UnpackError if one fails."""
    command = [sys.executable, "-c", LOAD]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
    if process.returncode:
        raise UnpackError(f"the libraries do not load: {process.stderr.strip().splitlines()[-1]}\n{process.stderr}")
    document: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return document
