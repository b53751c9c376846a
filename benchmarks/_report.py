"""How every benchmark is called and what it prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """A value beside that of its peer, from one run; `holds` says whether it meets `goal`."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    goal: str = ""
    holds: bool | None = None

    @property
    def ratio(self) -> float:
        """value / peer_value"""
        return self.value / self.peer_value


def arguments(description: str, **extra: dict[str, Any]) -> argparse.Namespace:
    """The command line: --quick, --json, and what the program adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small version, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    for name, options in extra.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def show(results: Iterable[Result], options: argparse.Namespace) -> None:
    """Print the results as the command line has it, with the machine and the versions they were measured on.

    A quick run is too short to tell anything: whether it meets a goal is left out.
    """
    shown = (replace(result, holds=None) if options.quick else result for result in results)
    document: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("asymdiffrec", "torch", "torchrec", "pyarrow", "triton"),
        "results": [{**asdict(result), "ratio": result.ratio} for result in shown],
    }
    if options.json:
        json.dump(document, sys.stdout, indent=2)
        print()
        return
    table = Table(*HEADINGS, title=machine())
    for result in document["results"]:
        table.add_row(*cells(result))
    Console().print(table)


HEADINGS = ("what", "value", "peer", "peer's value", "ratio", "goal", "holds")


def cells(result: Mapping[str, Any]) -> list[str]:
    """A row under HEADINGS of a result of a document."""
    value, peer_value = (f"{result[key]:,.4g} {result['unit']}" for key in ("value", "peer_value"))
    holds = {None: "", True: "yes", False: "no"}[result["holds"]]
    return [result["name"], value, result["peer"], peer_value, f"{result['ratio']:.3f}", result["goal"], holds]


def versions(*packages: str) -> dict[str, str]:
    """Those of the packages that are installed: a machine lent for its GPU alone has no torchrec."""
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{len(os.sched_getaffinity(0))} cores of {platform.machine()}, {device}"


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of two functions, run in turn so that a drift of the machine's speed meets both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for function in (first, second):
        function()
    for _ in range(rounds):
        for function, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])
