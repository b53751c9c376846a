"""Code that all benchmarks share: command line, printed document and timing."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks._result import HEADINGS, Result, cells


def arguments(description: str, **extra: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line: --quick, --json, and the options that the program adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="run a small version, to check that the program works")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    for name, options in extra.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def show(results: Iterable[Result], options: argparse.Namespace) -> None:
    """Print the results as a table or a JSON document, with the machine and the versions of the libraries.

    The results of a quick run have `holds=None`: the run is too short to judge whether a goal is met.
    """
    judged = (replace(result, holds=None) if options.quick else result for result in results)
    document: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("asymdiffrec", "torch", "torchrec", "pyarrow", "triton"),
        "results": [result.document() for result in judged],
    }
    if options.json:
        json.dump(document, sys.stdout, indent=2)
        print()
        return
    table = Table(*HEADINGS, title=machine())
    for result in document["results"]:
        table.add_row(*cells(result))
    Console().print(table)


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of the packages that are installed. A GPU machine may lack some, such as torchrec."""
    installed = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def machine() -> str:
    """Return the number of cores, the architecture and the GPU of this host."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{len(os.sched_getaffinity(0))} cores of {platform.machine()}, {device}"


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median time of each of two functions in seconds.

    They run alternately, so that a change of the machine's speed affects both.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for function in (first, second):
        function()
    for _ in range(rounds):
        for function, durations in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function()
            durations.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])
