"""What a person sees of a run: its metrics file followed and printed, on a terminal with a progress bar."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PARTS = ("main", "recon", "aux", "distil")
WAITS = 0.05
"""Share of the time that steps wait for data from where on it is said"""
METRICS = ("auc", "uauc", "log_loss", "normalized_entropy", "calibration")


@contextmanager
def followed(metrics: Path, steps: int, console: Console) -> Iterator[None]:
    """Print what is appended to a metrics file until the block ends.

    The file is the only channel, so a run looks the same whether its workers are in this process or on other nodes.
    """
    over = threading.Event()
    skip = metrics.stat().st_size if metrics.exists() else 0
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    thread = threading.Thread(target=_follow, args=(metrics, skip, steps, progress, over), daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _follow(metrics: Path, skip: int, steps: int, progress: Progress, over: threading.Event) -> None:
    task = progress.add_task("starting", total=steps)
    last = False
    while True:
        last = over.wait(0.2)
        if metrics.exists():
            with metrics.open() as file:
                file.seek(skip)
                while (line := file.readline()).endswith("\n"):
                    skip = file.tell()
                    record = json.loads(line)
                    progress.update(task, completed=record["step"], description=f"epoch {record['epoch'] + 1}")
                    progress.console.print(describe(record, steps), highlight=False, soft_wrap=True)
        if last:
            return


def describe(record: dict[str, Any], steps: int) -> str:
    """One line for one record of the metrics file; a metric that is undefined is left out."""
    head = f"step {record['step']}/{steps}  epoch {record['epoch'] + 1}"
    if "loss" in record:
        parts = [f"{part} {record[f'loss_{part}']:.4f}" for part in PARTS if f"loss_{part}" in record]
        left = f"{record['samples_per_second']:,.0f} samples/s  {_clock(record['seconds_left'])} left"
        waits = f"  waits for data {record['data_wait']:.0%}" if record["data_wait"] >= WAITS else ""
        return f"{head}  loss {record['loss']:.4f} ({', '.join(parts)})  {left}{waits}"
    if "files_added" in record:
        return f"{head}  {unused(record['files_added'])}"
    split = "valid" if "valid/auc" in record else "test"
    values = [f"{name} {value:.4f}" for name in METRICS if (value := record[f"{split}/{name}"]) is not None]
    share = f" with {record['missing']:.0%} missing" if record["missing"] else ""
    return f"{head}  {split}{share}: {'  '.join(values)}"


def unused(files: Sequence[str]) -> str:
    """What is said of training files that came after the run was started."""
    few = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    return f"not used: {len(files)} training files added since the run was started ({few}); a new run reads them"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
