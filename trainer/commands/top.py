"""`asymdiffrec top`: a run as it goes on, from what lies in its directory."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asymdiffrec.json_lines import read_json_lines
from asymdiffrec.trainer.console import console

LINES = 5
"""Of the losses, of the validations and of what was said"""
SILENT = 60
"""Seconds without a line after which that is said"""


def top(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory, as `train` makes one")],
    once: Annotated[bool, typer.Option("--once", help="print once and end")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="between two looks")] = 1.0,
) -> None:
    """Show a run as it goes on: losses, validations, and what each worker waits for and holds. Ctrl-C ends the showing.

    Reads nothing but the run directory, so it works from any machine that sees it, and disturbs nothing.
    """
    from asymdiffrec.trainer.run import open_run

    path = open_run(run).path
    if once:
        console.print(_shown(path))
        return
    with Live(_shown(path), console=console, auto_refresh=False) as live:
        try:
            while not (path / "result.json").exists():
                time.sleep(seconds)
                live.update(_shown(path), refresh=True)
        except KeyboardInterrupt:
            return


def _shown(path: Path) -> RenderableType:
    records = read_json_lines(path / "metrics.jsonl")
    steps = [record for record in records if "samples_per_second" in record]
    validations = [record for record in records if "valid/auc" in record]
    said = [record for record in records if {"note", "bad_losses", "workers", "files_added"} & record.keys()]
    parts: list[RenderableType] = [Text(_state(path, records, steps))]
    if steps:
        parts += [_losses(steps[-LINES:]), _ranks(steps[-1]["ranks"])]
    if validations:
        parts.append(_validations(validations[-LINES:]))
    if said:
        from asymdiffrec.trainer.fit.report import describe_record

        total = steps[-1]["step"] + _left(steps[-1]) if steps else 0
        parts += [Text(describe_record(record, total)) for record in said[-LINES:]]
    return Group(*parts)


def _left(record: dict[str, Any]) -> int:
    """Steps that are left"""
    rate = record["samples_per_second"] * record["step"] / record["samples"]
    return round(record["seconds_left"] * rate)


def _state(path: Path, records: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> str:
    if (path / "result.json").exists():
        result = json.loads((path / "result.json").read_text())
        return f"{path}: {result['outcome']} at step {result['step']}, best step {result['best_step']}"
    if not records:
        return f"{path}: nothing written yet"
    quiet = time.time() - (path / "metrics.jsonl").stat().st_mtime
    silence = f", no news for {quiet:,.0f} s" if quiet > SILENT else ""
    if not steps:
        return f"{path}: starting{silence}"
    last = steps[-1]
    return (
        f"{path}: step {last['step']:,} of {last['step'] + _left(last):,}, epoch {last['epoch'] + 1}, "
        f"{last['samples_per_second']:,.0f} samples/s, {last['seconds_left'] / 60:,.1f} minutes left{silence}"
    )


def _losses(steps: Sequence[dict[str, Any]]) -> Table:
    names = [name for name in steps[-1] if name == "loss" or name.startswith("loss_")]
    table = _table("step", *names, "samples/s")
    for record in steps:
        values = [f"{record[name]:.4f}" if name in record else "" for name in names]
        table.add_row(f"{record['step']:,}", *values, f"{record['samples_per_second']:,.0f}")
    return table


def _validations(records: Sequence[dict[str, Any]]) -> Table:
    from asymdiffrec.trainer.metrics import METRICS

    table = _table("validated at", "missing", *(metric.heading for metric in METRICS.values()))
    for record in records:
        values = [record[f"valid/{name}"] for name in METRICS]
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        table.add_row(f"{record['step']:,}", f"{record['missing']:.0%}", *shown)
    return table


def _ranks(ranks: Sequence[dict[str, float]]) -> Table:
    table = _table("worker", "waits for data", "waits for others", "memory, GB")
    for rank, own in enumerate(ranks):
        table.add_row(str(rank), f"{own['data_wait']:.0%}", f"{own['peer_wait']:.0%}", f"{own['memory'] / 1e9:.2f}")
    return table


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
