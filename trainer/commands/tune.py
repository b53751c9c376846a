"""`asymdiffrec tune`: search for values of a job on validation data, within a time budget."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.options import AsJson, JobFile, Overrides, parse_shares
from asymdiffrec.trainer.console import output, print_json, print_line

SECONDS_OF_UNIT = {"s": 1, "m": 60, "h": 3600}


def tune(
    job: JobFile,
    budget: Annotated[str, typer.Option(metavar="TIME", help="how long to search, for example 90s, 30m or 2h")] = "1h",
    missing: Annotated[
        str,
        typer.Option(
            metavar="SHARE,…",
            help="shares of fields that may be missing when the model is used; the log loss is averaged over them",
        ),
    ] = "0,0.3,0.7",
    seeds: Annotated[
        int, typer.Option(min=1, help="train each finalist with this many seeds, if the budget allows it")
    ] = 3,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder for all trials and the result; default: tuning/JOB-NAME"),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="number of trainings at the same time; default: one per CPU core")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster that runs the trainings; default: this host")] = None,
    as_json: AsJson = False,
) -> None:
    """Search for the values of a job that fit your data best, within a time budget.

    Searches method, loss weights, drop rates, learning rates and sizes. Only the training and validation splits are
    used. The search minimises the validation log loss, averaged over shares of missing fields. Then the best candidates
    are trained with more seeds, together with base and augment. If no candidate is better than base by more than
    chance, base is chosen.

    Results are job.yaml, ready to train, and tuning.json in --out. The command can be started again: it continues from
    the finished trials. If the data are split by time (`prepare --split time`), the validation rows are later than the
    training rows, as the rows in production will be.
    """
    from asymdiffrec.trainer.experiments.tune import Tuning, write_result
    from asymdiffrec.trainer.experiments.tune import tune as search
    from asymdiffrec.trainer.job import read_job

    seconds = _parse_seconds(budget)
    folder = out or Path("tuning") / read_job(job, overrides or ()).name
    tuning = Tuning(str(job.resolve()), tuple(overrides or ()), str(folder.resolve()), tuple(parse_shares(missing)))
    num_parallel = parallel or len(os.sched_getaffinity(0))
    document = search(tuning, seconds, seeds, num_parallel, address, print_line)
    chosen_file = write_result(tuning, document)
    if as_json:
        print_json(document)
        return
    output().print(_table(document))
    print_line(f"{document['description']}: {document['reason']}")
    print_line(f"Train it with: asymdiffrec train {chosen_file}")


def _parse_seconds(text: str) -> float:
    """Parse --budget. Raises InputError unless it is a positive number with a unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) == 0:
        raise InputError(f"--budget {text}: expected a time such as 90s, 30m or 2h")
    return float(match[1]) * SECONDS_OF_UNIT[match[2]]


def _table(document: dict[str, Any]) -> Table:
    shares = ", ".join(f"{share:.0%}" for share in document["shares"])
    table = Table("finalist", title=f"{document['trials']} trainings; validation log loss, mean over {shares} missing")
    seeds = sorted({seed for finalist in document["finalists"] for seed in finalist["log_loss"]})
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    for finalist in document["finalists"]:
        losses = [finalist["log_loss"].get(seed) for seed in seeds]
        table.add_row(finalist["description"], *("-" if loss is None else f"{loss:.4f}" for loss in losses))
    return table
