"""`asymdiffrec top`: show a run while it trains, from the files in its directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asymdiffrec.json_lines import JsonLinesReader
from asymdiffrec.trainer.commands.options import RunFolder
from asymdiffrec.trainer.console import console

if TYPE_CHECKING:
    from asymdiffrec.trainer.run import Run

Record = dict[str, Any]

MAX_LINES = 5
"""Maximum number of rows of each table, and of messages"""
SILENCE_SECONDS = 60
"""After this time without a new record, `top` also shows how long it has waited for one"""


def top(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="print the current state and exit")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="seconds between two updates")] = 1.0,
) -> None:
    """Show a run while it trains.

    Shows losses, validations, messages, and for each worker how long it waits and how much memory it uses. It ends when
    the run ends, or on Ctrl-C; Ctrl-C does not stop the run. It reads only the run directory, so it works on any host
    that can read the directory, and does not slow down the training.
    """
    from asymdiffrec.trainer.run import open_run

    opened = open_run(run)
    reader = JsonLinesReader(opened.metrics_file)
    records, _ = reader.read_new()
    if once:
        console.print(_show(opened, records))
        return
    with Live(_show(opened, records), console=console, auto_refresh=False) as live:
        try:
            while opened.result() is None:
                time.sleep(seconds)
                new_records, is_new_file = reader.read_new()
                records = new_records if is_new_file else records + new_records
                live.update(_show(opened, records), refresh=True)
        except KeyboardInterrupt:
            return


def _show(run: Run, records: Sequence[Record]) -> RenderableType:
    intervals = [record for record in records if "samples_per_second" in record]
    validations = [record for record in records if any(key.startswith("valid/") for key in record)]
    messages = [record for record in records if {"note", "bad_losses", "workers", "files_added"} & record.keys()]
    parts: list[RenderableType] = [Text(_describe_state(run, records, intervals))]
    if intervals:
        parts += [_loss_table(intervals[-MAX_LINES:]), _worker_table(intervals[-1]["ranks"])]
    if validations:
        parts.append(_validation_table(validations[-MAX_LINES:]))
    if messages:
        from asymdiffrec.trainer.fit.report import describe_record

        total_steps = intervals[-1]["step"] + _steps_left(intervals[-1]) if intervals else 0
        parts += [Text(describe_record(record, total_steps)) for record in messages[-MAX_LINES:]]
    return Group(*parts)


def _describe_state(run: Run, records: Sequence[Record], intervals: Sequence[Record]) -> str:
    if result := run.result():
        return f"{run.path}: {result['outcome']} at step {result['step']}, best step {result['best_step']}"
    if not records:
        return f"{run.path}: nothing written yet"
    silence = time.time() - run.metrics_file.stat().st_mtime
    warning = f", no new record for {silence:,.0f} s" if silence > SILENCE_SECONDS else ""
    if not intervals:
        return f"{run.path}: starting{warning}"
    last = intervals[-1]
    return (
        f"{run.path}: step {last['step']:,} of {last['step'] + _steps_left(last):,}, epoch {last['epoch'] + 1}, "
        f"{last['samples_per_second']:,.0f} samples/s, {last['seconds_left'] / 60:,.1f} minutes left{warning}"
    )


def _steps_left(record: Record) -> int:
    steps_per_second = record["samples_per_second"] * record["step"] / record["samples"]
    return round(record["seconds_left"] * steps_per_second)


def _loss_table(intervals: Sequence[Record]) -> Table:
    names = [name for name in intervals[-1] if name == "loss" or name.startswith("loss_")]
    table = _table("step", *names, "samples/s")
    for record in intervals:
        values = [f"{record[name]:.4f}" if name in record else "" for name in names]
        table.add_row(f"{record['step']:,}", *values, f"{record['samples_per_second']:,.0f}")
    return table


def _validation_table(records: Sequence[Record]) -> Table:
    from asymdiffrec.trainer.metrics import METRICS

    table = _table("at step", "missing", *(metric.heading for metric in METRICS.values()), title="validation")
    for record in records:
        values = [record[f"valid/{name}"] for name in METRICS]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        table.add_row(f"{record['step']:,}", f"{record['missing']:.0%}", *cells)
    return table


def _worker_table(ranks: Sequence[dict[str, float]]) -> Table:
    table = _table("worker", "waits for data", "waits for others", "memory, GB")
    for rank, usage in enumerate(ranks):
        waits = [f"{usage['data_wait']:.0%}", f"{usage['peer_wait']:.0%}"]
        table.add_row(str(rank), *waits, f"{usage['memory'] / 1e9:.2f}")
    return table


def _table(*headings: str, title: str | None = None) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
