"""What a person sees of a run: its metrics file followed and printed, on a terminal with a progress bar."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from asymdiffrec.trainer.checkpoints.init_from import Start
from asymdiffrec.trainer.metrics import METRICS

PARTS = ("main", "recon", "aux", "distil")
WAITS = 0.05
"""Share of the time that steps wait for data from where on it is said"""


@contextmanager
def followed(metrics: Path, steps: int, console: Console) -> Iterator[None]:
    """Print what is appended to a metrics file until the block ends.

    The file is the only channel, so a run looks the same whether its workers are in this process or on other nodes.
    """
    over = threading.Event()
    place = _Place.end(metrics)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    thread = threading.Thread(target=_follow, args=(metrics, place, steps, progress, over), daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def described_start(start: Start) -> Table:
    """What a run takes of another, what is new in it, and what of the other is left; those alike in one row, and
    weights with their biases."""
    table = Table(title=f"From step {start.step} of {start.run.path}")
    for heading in ("", "", "names", ""):
        table.add_column(heading, overflow="fold")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for piece in start.pieces:
        name = piece.name.removeprefix("diffusion.").rsplit(".", 1)[0] if piece.kind == "dense" else piece.name
        names = alike.setdefault((piece.outcome, piece.kind, piece.note), [])
        names += [name] if name not in names else []
    for outcome in ("taken", "new", "left"):
        for (how, kind, note), names in alike.items():
            if how == outcome:
                table.add_row(how, kind, escape(", ".join(names)), note)
    return table


@dataclass
class _Place:
    """How far a file was read; a file that goes on from an earlier step is a new one under the same name."""

    file: int = 0
    offset: int = 0

    @classmethod
    def end(cls, path: Path) -> _Place:
        return cls(path.stat().st_ino, path.stat().st_size) if path.exists() else cls()


def _follow(metrics: Path, place: _Place, steps: int, progress: Progress, over: threading.Event) -> None:
    task = progress.add_task("starting", total=steps)
    last = False
    while not last:
        last = over.wait(0.2)
        for record in _new(metrics, place):
            progress.update(task, completed=record["step"], description=f"epoch {record['epoch'] + 1}")
            progress.console.print(describe(record, steps), highlight=False, soft_wrap=True)


def _new(metrics: Path, place: _Place) -> list[dict[str, Any]]:
    """The records since a place, which is moved on; of a new file those since training last began."""
    if not metrics.exists():
        return []
    with metrics.open() as file:
        is_new = os.fstat(file.fileno()).st_ino != place.file
        file.seek(0 if is_new else place.offset)
        records = []
        while (line := file.readline()).endswith("\n"):
            place.file, place.offset = os.fstat(file.fileno()).st_ino, file.tell()
            records.append(json.loads(line))
    begun = [number for number, record in enumerate(records) if "workers" in record]
    return records[begun[-1] :] if is_new and begun else records


def describe(record: dict[str, Any], steps: int) -> str:
    """One line for one record of the metrics file; a metric that is undefined is left out."""
    head = f"step {record['step']}/{steps}  epoch {record['epoch'] + 1}"
    if "loss" in record:
        parts = [f"{part} {record[f'loss_{part}']:.4f}" for part in PARTS if f"loss_{part}" in record]
        left = f"{record['samples_per_second']:,.0f} samples/s  {_clock(record['seconds_left'])} left"
        waits = f"  waits for data {record['data_wait']:.0%}" if record["data_wait"] >= WAITS else ""
        return f"{head}  loss {record['loss']:.4f} ({', '.join(parts)})  {left}{waits}"
    if "samples_per_second" in record:
        return f"{head}  every step was skipped"
    if "files_added" in record:
        return f"{head}  {unused(record['files_added'])}"
    if "workers" in record:
        count = record["workers"]
        how = f"goes on from step {record['step']}" if record["step"] else "begins"
        hosts = f" on {len(record['hosts'])} hosts" if len(record["hosts"]) > 1 else ""
        return f"training {how}, {count} worker{'s' if count > 1 else ''}{hosts}"
    if "note" in record:
        return f"{head}  {record['note']}"
    if "lost" in record:
        rank, loss = next(iter(record["lost"].items()))
        first, last = record["lost_samples"]
        return f"{head}  skipped: the loss is {loss} on worker {rank}; samples {first:,} to {last:,} of the run"
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
