"""Run the GPU day: all checks and measurements that need a GPU, within a time limit, on a machine without a network.

python3 -m benchmarks.gpu.day [PART ...] [--limit SECONDS] [--any-machine]

Without PART all parts run, in their order. If a part fails or exceeds its time limit, the other parts still run. After
each part the folder $OUT (default: gpu-out/) has summary.json, gpu-day.json (the results in the format of all
benchmarks), work.tar.gz (logs, losses of every step, plans) and traces.tar.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ALL, PARTS, Setup
from benchmarks.gpu.results import document
from benchmarks.gpu.runs import summary
from benchmarks.gpu.unpack import ROOT

LEFT_OUT = {"checkpoints", "events", "profile", "export", "traces", "site", "data"}
"""Names of folders that are left out of work.tar.gz, at any depth. They are large and not needed later"""
MIN_SECONDS = 5
"""Least remaining time to start a part"""
SHOWN_LINES = 12
"""Number of lines to show from the end of the log of a failed part"""


class Day:
    """A run of the parts, each in a subprocess. The output is saved after each part."""

    def __init__(self, setup: Setup, out: Path, limit: float, slow: float) -> None:
        self.setup, self.out, self.slow = setup, out, slow
        self.end = time.monotonic() + limit
        self.statuses: dict[str, dict[str, Any]] = {}

    def run(self, name: str) -> bool:
        """Run a part, or its members in parallel, and return whether everything succeeded."""
        part = ALL[name]
        if part.needs_gpu and not self.setup.on_gpu:
            self._record(name, "needs a GPU", 0)
            return True
        start, seconds = time.monotonic(), min(self.slow * part.seconds, self.end - time.monotonic())
        if part.side_by_side:
            with ThreadPoolExecutor(len(part.side_by_side)) as pool:
                succeeded = all(list(pool.map(self.run, part.side_by_side)))
            self._record(name, "done" if succeeded else "failed", time.monotonic() - start)
            return succeeded
        if seconds < MIN_SECONDS:
            self._record(name, "not started: no time left", 0)
            return False
        status = self._process(name, seconds)
        self._record(name, status, time.monotonic() - start)
        return status == "done"

    def _process(self, name: str, seconds: float) -> str:
        """Run a part in a subprocess for at most `seconds` and return its status."""
        command = [sys.executable, "-m", "benchmarks.gpu.parts", name, self.setup.work]
        with (self.setup.folder / f"{name}.log").open("wb") as log:
            options: dict[str, Any] = {"cwd": ROOT, "env": self._environment(), "stdout": log, "stderr": log}
            process = subprocess.Popen(command, start_new_session=True, **options)
            try:
                return "done" if process.wait(seconds) == 0 else "failed"
            except subprocess.TimeoutExpired:
                return f"out of time after {seconds:.0f} s"
            finally:
                _end(process)

    def _environment(self) -> dict[str, str]:
        """Return the environment variables of a part: for the unpacked packages, and for few threads.

        Parts share cores.
        """
        threads = {"OMP_NUM_THREADS": "2" if self.setup.on_gpu else "1", "TORCHINDUCTOR_COMPILE_THREADS": "4"}
        file = self.setup.folder / "environment.json"
        unpacked = json.loads(file.read_text()) if file.exists() else {}
        return {**os.environ, **threads, **unpacked, "PYTHONUNBUFFERED": "1"}

    def _record(self, name: str, status: str, seconds: float) -> None:
        self.statuses[name] = {"status": status, "seconds": round(seconds, 1)}
        print(f"{name:<12} {seconds:6.1f} s  {status}", flush=True)

    def save(self) -> None:
        """Write all results so far to the output folder. Each file is replaced atomically, so it is always complete."""
        whole = summary(self.setup.folder, self.statuses)
        _write(self.out / "summary.json", json.dumps(whole, indent=1))
        _write(self.out / "gpu-day.json", json.dumps(document(whole), indent=2) + "\n")
        _archive(self.out / "work.tar.gz", "w:gz", self.setup.folder, LEFT_OUT)
        traces = self.setup.folder / "traces"
        if traces.exists():
            _archive(self.out / "traces.tar", "w", traces, set())

    def failures(self) -> list[str]:
        """Return the names of the failed parts. Parts that run in parallel are named individually."""
        good = ("done", "needs a GPU")
        return [name for name, part in self.statuses.items() if part["status"] not in good and ALL[name].action]

    def show_failures(self) -> None:
        """Print the end of each failed part's log."""
        for name in self.failures():
            log = self.setup.folder / f"{name}.log"
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            print(f"--- {name}: {self.statuses[name]['status']}")
            print("\n".join(line[:300] for line in lines[-SHOWN_LINES:]))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all processes of a part, including child processes that are still running."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _write(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}")
    new.write_text(text)
    new.replace(file)


def _archive(file: Path, mode: Any, folder: Path, left_out: set[str]) -> None:
    """Write the files below `folder` to an archive. Folders with a name in `left_out` are skipped."""
    new = file.with_name(f".{file.name}")
    with tarfile.open(new, mode) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not left_out & set(path.relative_to(folder).parts):
                archive.add(path, Path(folder.name) / path.relative_to(folder))
    new.replace(file)


def device() -> str:
    """Return "cuda" if torch finds a GPU, else "cpu"."""
    code = "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(ALL)}; default: all")
    parser.add_argument("--pack", type=Path, default=ROOT / ".gpu", help="folder that gpu.pack wrote (default: .gpu)")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gpu-day"), help="folder for runs and logs; emptied")
    parser.add_argument("--site", type=Path, default=Path("/tmp/gpu-site"), help="folder for the unpacked packages")
    parser.add_argument("--limit", type=float, default=480, metavar="SECONDS", help="time limit of all parts (480)")
    parser.add_argument("--slow", type=float, default=1, metavar="FACTOR", help="factor for the time limits of parts")
    parser.add_argument(
        "--any-machine", action="store_true", help="also run on a CPU or another GPU, to check that the parts work"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in ALL]:
        parser.error(f"no part is named {unknown[0]}; the parts are {', '.join(ALL)}")
    here = device()
    if here == "cpu" and not options.any_machine:
        sys.exit("torch finds no GPU; --any-machine runs small versions on the CPU")
    work, out = options.work.resolve(), Path(os.environ.get("OUT", ROOT / "gpu-out")).resolve()
    shutil.rmtree(work, ignore_errors=True)
    (work / "runs").mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        str(options.pack.resolve()), str(work), str(options.site.resolve()), here, options.any_machine, here == "cpu"
    )
    setup.save()
    day = Day(setup, out, options.limit, options.slow)
    try:
        if day.run("unpack"):
            for name in [name for name in options.parts or PARTS if name != "unpack"]:
                day.run(name)
                day.save()
    finally:
        day.save()
    day.show_failures()
    sys.exit(1 if day.failures() else 0)


if __name__ == "__main__":
    main()
