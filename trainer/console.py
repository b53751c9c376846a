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

REPORT_WIDTH = 132
"""Characters per line of a report, if standard output is not a terminal"""
PROGRESS_LINE_SECONDS = 10.0
"""Minimum time between two lines about the same work, if standard error is not a terminal"""


def output() -> Console:
    """Return the console for reports. It is wide enough for tables if standard output is not a terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=REPORT_WIDTH)


def print_line(line: str) -> None:
    """Print a line to standard error unchanged: not wrapped, not colored, and square brackets are plain text."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print a JSON document to standard output."""
    json.dump(document, sys.stdout, indent=2)
    print()


@contextmanager
def show_progress() -> Iterator[Callable[[str, float | None], None]]:
    """Show the progress of long work: a bar on a terminal, lines elsewhere.

    Yields a function of two arguments: a description of the current work, and the share of the work that is done, or
    None if the share is not known.

        with show_progress() as show:
            for number in range(100):
                show("reading", number / 100)
    """
    if not console.is_terminal:
        yield _progress_lines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        present = ""

        def show(description: str, share: float | None) -> None:
            nonlocal present
            if description != present:
                bar.reset(task, description=description, total=None)
                present = description
            bar.update(task, total=None if share is None else 1.0, completed=share or 0.0)

        yield show


def _progress_lines() -> Callable[[str, float | None], None]:
    """Return a function that prints a line when the description changes, and later at most every few seconds."""
    present, printed_at = "", 0.0

    def show(description: str, share: float | None) -> None:
        nonlocal present, printed_at
        now = time.monotonic()
        if description == present and now - printed_at < PROGRESS_LINE_SECONDS:
            return
        print_line(description if share is None or description != present else f"{description}: {share:.0%}")
        present, printed_at = description, now

    return show
