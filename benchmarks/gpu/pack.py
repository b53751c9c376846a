"""Pack the files that a GPU machine without a network needs for a training.

These are the CUDA build of FBGEMM, TorchRec, small packages, a data set, and the losses of a training on the CPU.

python -m benchmarks.gpu.pack [--out FOLDER] [--cache FOLDER] [--limit MIB] [--data-only]

Packing needs no GPU. The libraries of FBGEMM take 2.5 GB. Most of it is GPU code for three architectures and all
optimizers. Only the code for a training on one architecture is packed, see `fat_binaries.trim`.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.gpu import fat_binaries, packed_library
from benchmarks.gpu.machine import FBGEMM, MACHINE, TORCHREC
from benchmarks.gpu.packages import compressed, download, is_library, packages_archive, pinned
from benchmarks.gpu.reference import write_reference

ROOT = Path(__file__).parents[2]
MIB = 2**20
MAX_SENT_BYTES = 64 * MIB
"""Largest size of the files that are sent to the GPU machine: pack and checkout together"""
NEEDS = fat_binaries.Needs(
    architecture=10 * MACHINE["capability"][0] + MACHINE["capability"][1],
    # Batches of varying size, global weight decay, look-ups of quantized tables on a GPU.
    unused_libraries=("_vbe.so", "_gwd.so", "_inference.so"),
    # Tables on disks, look-ups without pooling, and optimizers that a job file does not accept.
    unused_kernels=re.compile(
        r"ssd_|nobag|_vbe_|_gwd|lamb|lars|rowwise_adagrad_with_counter|rowwise_adam|codegen_none"
    ),
)
ROWS, STEPS = 40_000, 400
"""Number of rows of the data set, and of steps of the reference run"""


def decompress(cubin: bytes) -> bytes:
    """Return the content of a zstd stream."""
    with pa.input_stream(pa.BufferReader(cubin), compression="zstd") as stream:
        return bytes(stream.read())


def pack_member(wheel: Path, member: str, out: Path) -> None:
    """Pack a library of a wheel: write OUT/NAME.xz and OUT/NAME.json, its entry in the manifest.

    If the files exist, they are kept.
    """
    name = Path(member).name
    entry_file = out / f"{name}.json"
    if entry_file.exists():
        return
    library = bytearray(zipfile.ZipFile(wheel).read(member))
    blank = fat_binaries.trim(name, library, NEEDS, decompress)
    entry = packed_library.pack(bytes(library), member, blank, out / f"{name}.xz")
    entry_file.write_text(json.dumps(entry))  # written last: it shows that the other file is complete


def pack_libraries(wheel: Path, cache: Path) -> Path:
    """Pack each library of a wheel and return the folder with the packed libraries.

    The folder is below `cache`, and used again if the wheel and the code for packing are the same.
    """
    code = inspect.getsource(fat_binaries) + inspect.getsource(packed_library)
    key = hashlib.sha256(repr((code, NEEDS, wheel.name)).encode()).hexdigest()[:12]
    folder = cache / f"packed-{key}"
    folder.mkdir(exist_ok=True)
    members = [name for name in zipfile.ZipFile(wheel).namelist() if is_library(name)]
    with ProcessPoolExecutor(2) as pool:
        for task in [pool.submit(pack_member, wheel, member, folder) for member in members]:
            task.result()
    return folder


def pack_site(site: Path, cache: Path) -> None:
    """Write the packed libraries, packages.tar.xz and manifest.json to `site`, which is emptied first."""
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    cache.mkdir(parents=True, exist_ok=True)
    wheels = download([FBGEMM, TORCHREC, *pinned(ROOT)], cache)
    archive = packages_archive(wheels, ROOT)
    (site / "packages.tar.xz").write_bytes(compressed(archive))
    fbgemm = next(wheel for wheel in wheels if wheel.name.startswith("fbgemm_gpu-"))
    libraries = {}
    for file in sorted(pack_libraries(fbgemm, cache).glob("*.xz")):
        shutil.copy2(file, site)
        libraries[file.stem] = json.loads(file.with_suffix(".json").read_text())
    manifest: dict[str, Any] = {
        "machine": MACHINE,
        "wheels": [wheel.name for wheel in wheels],
        "packages": hashlib.sha256(archive).hexdigest(),
        "libraries": libraries,
    }
    (site / "manifest.json").write_text(json.dumps(manifest) + "\n")


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def checkout_bytes() -> int:
    """Return the size in bytes of the files of this checkout that git does not ignore. They are sent with the pack."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    return sum((ROOT / name).lstat().st_size for name in names if name and (ROOT / name).exists())


def main() -> None:
    """Write `.gpu/` for a GPU machine without a network, and print the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu", help="folder to write (default: .gpu)")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "asymdiffrec-gpu", help="folder for downloads"
    )
    parser.add_argument("--limit", type=float, default=48, metavar="MIB", help="largest size of the folder (48)")
    parser.add_argument("--data-only", action="store_true", help="write only the data and the losses, no libraries")
    options = parser.parse_args()
    out, start = options.out.resolve(), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    if not options.data_only:
        pack_site(out / "site", options.cache.resolve())
        for file in sorted((out / "site").iterdir(), key=lambda file: -file.stat().st_size):
            print(f"{file.stat().st_size / MIB:7.2f} MiB  {file.name}")
    print("training on the CPU to get the losses for comparison", flush=True)
    write_reference(out, ROWS, STEPS)
    size = folder_bytes(out)
    total = size + checkout_bytes()
    print(f"{size / MIB:7.2f} MiB  {options.out}, packed in {time.monotonic() - start:.0f} s")
    print(f"{total / MIB:7.2f} MiB  pack and checkout together; at most {MAX_SENT_BYTES / MIB:g} MiB can be sent")
    if size > options.limit * MIB:
        sys.exit(f"{options.out}: larger than {options.limit:g} MiB; see --limit")
    if total > MAX_SENT_BYTES:
        sys.exit(f"{options.out} and the checkout: larger than {MAX_SENT_BYTES / MIB:g} MiB together")


if __name__ == "__main__":
    main()
