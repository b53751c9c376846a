"""Output of commands: reports go to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

console = Console(stderr=True)

WIDTH = 132
"""Columns of a table, where there is no terminal that has its own"""
QUIET = 10.0
"""Seconds between two lines about the same work where there is no terminal"""


def output() -> Console:
    """Standard output, for tables: where it is no terminal they have room."""
    out = Console()
    return out if out.is_terminal else Console(width=WIDTH)


def print_json(document: Any) -> None:
    json.dump(document, sys.stdout, indent=2)
    print()


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """Shows how far long work is: a bar on a terminal, else a line when work begins and now and then while it goes on.

    What it gives is called with what is being done and the share of it that is done, or None.
    """
    if not console.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        now = ""

        def show(doing: str, share: float | None) -> None:
            nonlocal now
            if doing != now:
                bar.reset(task, description=doing, total=None)
                now = doing
            bar.update(task, total=None if share is None else 1.0, completed=share or 0.0)

        yield show


def _lines() -> Callable[[str, float | None], None]:
    now, last = "", 0.0

    def show(doing: str, share: float | None) -> None:
        nonlocal now, last
        moment = time.monotonic()
        if doing == now and moment - last < QUIET:
            return
        console.print(doing if share is None or doing != now else f"{doing}: {share:.0%}", highlight=False)
        now, last = doing, moment

    return show
