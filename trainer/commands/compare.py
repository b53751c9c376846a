"""`asymdiffrec compare`: does it help on these data, and by how much more than chance?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymdiffrec.trainer.commands.console import console, output, print_json, progress
from asymdiffrec.trainer.commands.options import AsInTraining, AsJson, JobFile, Outages, Overrides, Unseen, parse_shares
from asymdiffrec.trainer.experiments.text import diverged, periods, table

if TYPE_CHECKING:
    from asymdiffrec.trainer.experiments.compare import Task

SHOWN = ("auc", "log_loss")


def compare(
    job: JobFile,
    variants: Annotated[
        str,
        typer.Option(metavar="A,B,…", help="see --list; the first is what the others are held against"),
    ] = "base,augment,asymdiff",
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each, with seeds 0, 1, …")] = 5,
    missing: Annotated[
        str, typer.Option(metavar="R,R,…", help="shares of the present fields to drop from test samples")
    ] = "0,0.1,0.3,0.5,0.7",
    outage: Outages = None,
    as_in_training: AsInTraining = False,
    unseen: Unseen = None,
    progressive: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="judge on N periods in place of the test split, each time trained on what is earlier by data.time",
        ),
    ] = None,
    overrides: Overrides = None,
    define: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:PATH=VALUE", help="a variant of your own; repeatable, also for one name"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of all runs; comparisons/NAME when left out")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="trainings side by side, under Ray")] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run them on; left out: this machine")] = None,
    draws: Annotated[int, typer.Option(min=50, help="of the bootstrap")] = 500,
    listed: Annotated[bool, typer.Option("--list", help="say which variants there are, and end")] = False,
    as_json: AsJson = False,
) -> None:
    """Train variants on the same data, order and budget; compare them on test samples with features missing.

    Differences are paired by seed, user and sample, with intervals that hold together with 95 % probability for all
    variants and scenarios of a metric. Started again it goes on where it stopped; more variants, seeds or scenarios
    add to what is there. OUT gets comparison.json, .html and .png.
    """
    from asymdiffrec.trainer.experiments.variants import NAMED, contenders

    if listed:
        for name, (_, told) in NAMED.items():
            print(f"{name:12}{told}")
        return
    from asymdiffrec.datasets.files.atomic import replace_file
    from asymdiffrec.trainer.evaluation.scenarios import ScenarioOptions
    from asymdiffrec.trainer.experiments import compare as comparison
    from asymdiffrec.trainer.job import read_job

    folder = out or Path("comparisons") / read_job(job, overrides or ()).name
    asked = ScenarioOptions(parse_shares(missing), outage or (), {}, as_in_training, unseen or ())
    chosen = contenders([name.strip() for name in variants.split(",")], define or ())
    common = (job, chosen, seeds, overrides or (), folder, asked)
    work = comparison.progressive(*common, progressive) if progressive else comparison.tasks(*common)
    for number, (task, auc, seconds) in enumerate(_done(work, parallel, address), start=1):
        took = f", {seconds:.0f} s" if seconds >= 1 else ""
        console.print(f"{number}/{len(work)}  {task.name}: AUC {auc:.4f}{took}", highlight=False, soft_wrap=True)
    with progress() as show:
        counted = iter(range(1, len(work) + 1))
        document = comparison.compared(
            work, [chosen[0].name], draws, lambda: show("bootstrap", next(counted) / len(work))
        )
    from asymdiffrec.trainer.experiments.page import picture, write_page

    replace_file(folder / "comparison.json", json.dumps(document, indent=2).encode())
    picture(document).savefig(folder / "comparison.png", dpi=110)
    write_page(document, folder / "comparison.html")
    if as_json:
        print_json(document)
        return
    for metric in SHOWN:
        output().print(table(document, metric))
    if document["periods"]:
        output().print(periods(document))
    for line in diverged(document):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"More, and curves: {folder / 'comparison.html'}", highlight=False, soft_wrap=True)


def _done(work: Sequence[Task], parallel: int, address: str | None) -> Iterator[tuple[Task, float, float]]:
    """Each task as it is done, with the AUC of its first scenario and the seconds since the one before."""
    from asymdiffrec.trainer.experiments.compare import run

    start = time.monotonic()
    done: Iterable[tuple[Task, float]]
    if parallel == 1 and address is None:
        done = ((task, run(task)) for task in work)
    else:
        from asymdiffrec.cluster.parallel_tasks import run_in_parallel

        done = run_in_parallel(run, work, parallel, address)
    for task, auc in done:
        yield task, auc, time.monotonic() - start
        start = time.monotonic()
