"""`asymdiffrec tune`: settings for one's own data, within a budget of time."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.console import console, output, print_json
from asymdiffrec.trainer.commands.options import AsJson, JobFile, Overrides, parse_shares

UNITS = {"s": 1, "m": 60, "h": 3600}


def tune(
    job: JobFile,
    budget: Annotated[str, typer.Option(metavar="1h", help="time to search, such as 90s, 30m or 2h")] = "1h",
    missing: Annotated[
        str, typer.Option(metavar="R,R,…", help="shares of missing fields that you care for, beside what is missing")
    ] = "0,0.3,0.7",
    seeds: Annotated[int, typer.Option(min=1, help="of the finalists, as far as the budget allows")] = 3,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of all trials; tuning/NAME when left out")
    ] = None,
    parallel: Annotated[
        int | None, typer.Option(min=1, help="trainings side by side; one for each core when left out")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run them on; left out: this machine")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the law of t, loss weights, drop factors, variant, capacity and rates, on validation data alone.

    What is minimised is the log loss averaged over shares of missing fields. The best are trained with more seeds,
    beside base and augment, and base is chosen where none is better by more than chance. OUT gets job.yaml, to be
    trained, and tuning.json. Started again it goes on from the trials that are there. With rows in order of time
    (`prepare --split time`) the validation split is later than the training rows, as life is.
    """
    from asymdiffrec.trainer.experiments.tune import Tuning, write_outcome
    from asymdiffrec.trainer.experiments.tune import tune as search
    from asymdiffrec.trainer.job import read_job

    seconds = _seconds(budget)
    folder = out or Path("tuning") / read_job(job, overrides or ()).name
    tuning = Tuning(str(job.resolve()), tuple(overrides or ()), str(folder.resolve()), tuple(parse_shares(missing)))
    at_once = parallel or len(os.sched_getaffinity(0))
    document = search(
        tuning, seconds, seeds, at_once, address, lambda line: console.print(line, highlight=False, soft_wrap=True)
    )
    written = write_outcome(tuning, document)
    if as_json:
        print_json(document)
        return
    output().print(_table(document))
    console.print(f"{document['is']}: {document['why']}", highlight=False, soft_wrap=True)
    console.print(f"Train it with: asymdiffrec train {written}", highlight=False, soft_wrap=True)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not found or float(found[1]) == 0:
        raise InputError(f"--budget {text}: expected a time such as 90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2]]


def _table(document: dict[str, Any]) -> Table:
    shares = ", ".join(f"{share:.0%}" for share in document["shares"])
    table = Table("finalist", title=f"{document['trials']} trainings; validation log loss, mean over {shares} missing")
    seeds = sorted({seed for one in document["finalists"] for seed in one["log_loss"]})
    for seed in seeds:
        table.add_column(f"seed {seed}", justify="right")
    for one in document["finalists"]:
        losses = [one["log_loss"].get(seed) for seed in seeds]
        table.add_row(one["is"], *("-" if loss is None else f"{loss:.4f}" for loss in losses))
    return table
