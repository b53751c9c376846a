"""Run benchmarks, write their JSON documents to results/, and show all results as one table and one picture.

python -m benchmarks [NAME ...] [--quick] [--into FOLDER] [--no-run]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._draw import draw
from benchmarks._result import HEADINGS, cells

HERE = Path(__file__).parent
NOT_MEASUREMENTS = ("same_computation",)
"""Programs that print no results; they have different command-line options"""
PROGRAMS = sorted(file.stem for file in HERE.glob("[a-z]*.py") if file.stem not in NOT_MEASUREMENTS)
RUN_BY_NAME = ("evidence",)
"""Programs that take hours. They run only if the command line names them"""


def run(name: str, quick: bool, into: Path) -> bool:
    """Run a benchmark, write its JSON document to `into`, and return whether the benchmark succeeded."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if quick else [])]
    process = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    if process.returncode == 0:
        (into / f"{name.replace('_', '-')}.json").write_text(process.stdout)
    return process.returncode == 0


def table(documents: dict[str, dict[str, Any]]) -> Table:
    """Return the results of all documents as one table."""
    rows = Table("program", *HEADINGS, "machine")
    for name, document in documents.items():
        for result in document["results"]:
            rows.add_row(name, *cells(result), document["machine"])
        rows.add_section()
    return rows


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(PROGRAMS)}; default: all except {', '.join(RUN_BY_NAME)}",
    )
    parser.add_argument("--quick", action="store_true", help="run small versions, to check that the programs work")
    parser.add_argument("--into", type=Path, default=HERE / "results", help="folder for JSON documents and the picture")
    parser.add_argument("--no-run", action="store_true", help="only show the results in the folder")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in PROGRAMS]
    if unknown:
        parser.error(f"no benchmark is named {unknown[0]}; the benchmarks are {', '.join(PROGRAMS)}")
    options.into.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in [] if options.no_run else options.names or [name for name in PROGRAMS if name not in RUN_BY_NAME]:
        print(f"benchmarks.{name} ...", file=sys.stderr, flush=True)
        if not run(name, options.quick, options.into):
            failed.append(name)
    documents = {file.stem: json.loads(file.read_text()) for file in sorted(options.into.glob("*.json"))}
    Console(width=None if sys.stdout.isatty() else 200).print(table(documents))
    draw(documents, options.into / "speed.png")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
