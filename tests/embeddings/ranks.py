"""Run a test file as several ranks, each a process that writes a report."""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 1200
"""Limit that only a hanging rank reaches, however busy the host is."""


def run_ranks(program: str, folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """Call `run_rank(RANK, FOLDER)` of the test file `program` on each rank; return each FOLDER/rankRANK.json."""
    module = ".".join(Path(program).relative_to(ROOT).with_suffix("").parts)
    settings = {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.embeddings.ranks", module, str(folder), str(count)]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=MAX_SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(count)]


def main(module: str, folder: Path, count: int) -> int:
    """Import the program once, fork its ranks, and return how many failed."""
    program, context = importlib.import_module(module), multiprocessing.get_context("fork")

    def run(number: int) -> None:
        os.environ["LOCAL_RANK"] = str(number)
        program.run_rank(number, folder)

    ranks = [context.Process(target=run, args=(number,), daemon=True) for number in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return sum(rank.exitcode != 0 for rank in ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
