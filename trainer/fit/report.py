"""Show a running training: print one line per record of its metrics file, with a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from asymdiffrec.json_lines import follow_json_lines
from asymdiffrec.trainer.checkpoints.init_from import InitPlan
from asymdiffrec.trainer.metrics import METRICS

LOSS_ORDER = ("main", "recon", "aux", "distil")
"""Order of the built-in losses in a line; losses of a user's method follow in the order of the record"""
MIN_SHOWN_DATA_WAIT = 0.05
"""A line shows the share of time spent waiting for data if the share is at least this large"""
MAX_SHOWN_FILES = 3


@contextmanager
def show_progress(metrics: Path, steps: int, console: Console) -> Iterator[None]:
    """Print the records that are appended to a metrics file until the block ends. `steps`: steps of the whole run.

    All information comes from the file, so a run looks the same whether its workers are in this process or on other
    hosts.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting", total=steps)

    def show(records: list[dict[str, Any]], is_new_file: bool) -> None:
        for record in _records_of_last_session(records) if is_new_file else records:
            bar.update(task, completed=record["step"], description=f"epoch {record['epoch'] + 1}")
            bar.console.print(describe_record(record, steps), highlight=False, soft_wrap=True)

    with bar, follow_json_lines(metrics, show, from_end=True):
        yield


def _records_of_last_session(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records since training last started. A session that resumes writes a new file."""
    starts = [number for number, record in enumerate(records) if "workers" in record]
    return records[starts[-1] :] if starts else records


def init_table(plan: InitPlan) -> Table:
    """Return a table of the parts that a run takes from another run, that are new, or that are left out.

    Parts with the same outcome, kind and note share a row; a weight and its bias count as one part.
    """
    table = Table(title=f"From step {plan.step} of {plan.run}")
    for heading in ("", "", "names", ""):
        table.add_column(heading, overflow="fold")
    rows: dict[tuple[str, str, str], list[str]] = {}
    for part in plan.parts:
        name = part.name.removeprefix("diffusion.").rsplit(".", 1)[0] if part.kind == "dense" else part.name
        names = rows.setdefault((part.outcome, part.kind, part.note), [])
        names += [name] if name not in names else []
    for outcome in ("taken", "new", "left out"):
        for (row_outcome, kind, note), names in rows.items():
            if row_outcome == outcome:
                table.add_row(outcome, kind, escape(", ".join(names)), note)
    return table


def describe_record(record: Mapping[str, Any], steps: int) -> str:
    """Return one line about one record of the metrics file; undefined metrics are left out."""
    head = f"step {record['step']}/{steps}  epoch {record['epoch'] + 1}"
    if "loss" in record:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in _loss_parts(record).items())
        speed = f"{record['samples_per_second']:,.0f} samples/s  {_clock(record['seconds_left'])} left"
        is_slow = record["data_wait"] >= MIN_SHOWN_DATA_WAIT
        waits = f"  waits for data {record['data_wait']:.0%}" if is_slow else ""
        return f"{head}  loss {record['loss']:.4f} ({losses})  {speed}{waits}"
    if "samples_per_second" in record:
        return f"{head}  every step was skipped"
    if "files_added" in record:
        return f"{head}  {describe_unused_files(record['files_added'])}"
    if "workers" in record:
        count, hosts = record["workers"], len(record["hosts"])
        verb = f"continues from step {record['step']}" if record["step"] else "begins"
        return f"training {verb}, {count} worker{'s' if count > 1 else ''}" + (f" on {hosts} hosts" * (hosts > 1))
    if "note" in record:
        return f"{head}  {record['note']}"
    if "bad_losses" in record:
        rank, loss = next(iter(record["bad_losses"].items()))
        first, last = record["bad_samples"]
        return f"{head}  skipped: the loss is {loss} on worker {rank}; samples {first:,} to {last:,} of the run"
    split = "valid" if "valid/auc" in record else "test"
    values = [f"{name} {value:.4f}" for name in METRICS if (value := record[f"{split}/{name}"]) is not None]
    share = f" with {record['missing']:.0%} missing" if record["missing"] else ""
    return f"{head}  {split}{share}: {'  '.join(values)}"


def _loss_parts(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the losses `loss_NAME` of a record by name: first the built-in losses in LOSS_ORDER, then the others."""
    parts = {key.removeprefix("loss_"): value for key, value in record.items() if key.startswith("loss_")}
    return {name: parts[name] for name in (*(name for name in LOSS_ORDER if name in parts), *parts)}


def describe_unused_files(files: Sequence[str]) -> str:
    """Return a phrase about training files that were added after the run was started."""
    names = ", ".join(files[:MAX_SHOWN_FILES]) + (", …" if len(files) > MAX_SHOWN_FILES else "")
    return f"not used: {len(files)} training files added since the run was started ({names}); a new run reads them"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
