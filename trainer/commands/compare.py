"""`asymdiffrec compare`: train variants on the same data and compare them, with confidence intervals."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymdiffrec.trainer.commands.options import (
    AsInTraining,
    AsJson,
    JobFile,
    Outages,
    Overrides,
    Unseen,
    parse_shares,
)
from asymdiffrec.trainer.console import output, print_json, print_line, show_progress

if TYPE_CHECKING:
    from asymdiffrec.trainer.experiments.running import Failure
    from asymdiffrec.trainer.experiments.tasks import Task

PRINTED_METRICS = ("auc", "log_loss")
"""Metrics that are printed on a terminal; the page contains all metrics"""


def compare(
    job: JobFile,
    variants: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="variants to train, see --list; the first is the reference for all differences"
        ),
    ] = "base,augment,asymdiff",
    seeds: Annotated[int, typer.Option(min=1, help="train each variant this many times, with seeds 0, 1, …")] = 5,
    missing: Annotated[
        str,
        typer.Option(
            metavar="SHARE,…",
            help="evaluate once per share, dropping that share of all fields at random; 0 drops none",
        ),
    ] = "0,0.1,0.3,0.5,0.7",
    outage: Outages = None,
    as_in_training: AsInTraining = False,
    unseen: Unseen = None,
    progressive: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="evaluate on N periods instead of the test split: order all rows by data.time, and train on the rows "
            "before each period",
        ),
    ] = None,
    overrides: Overrides = None,
    define: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:PATH=VALUE",
            help="define a variant by an override, for example light:tables.embedding_dim=8; repeatable; repeat the "
            "name to add overrides to the variant",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder for all runs and results; default: comparisons/JOB-NAME"),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="number of trainings at the same time, under Ray")] = 1,
    address: Annotated[str | None, typer.Option(help="Ray cluster that runs the trainings; default: this host")] = None,
    draws: Annotated[
        int, typer.Option(min=50, help="number of bootstrap replicates for the confidence intervals")
    ] = 500,
    list_variants: Annotated[bool, typer.Option("--list", help="print the built-in variants and exit")] = False,
    as_json: AsJson = False,
) -> None:
    """Train variants of a job and compare them on test samples, with confidence intervals.

    All variants get the same data, in the same order, and the same budget. Differences from the first variant are
    paired by seed, user and sample. The intervals of a metric are simultaneous: with 95 % probability all of them
    contain the true value.

    The command can be started again: it continues where it stopped, and adds further variants, seeds and scenarios to
    the results in --out. A variant whose training fails is reported and left out, and the exit status is 1. Results are
    comparison.json, comparison.html and comparison.png in --out.
    """
    from asymdiffrec.trainer.experiments.variants import BUILT_IN, parse_variants

    if list_variants:
        for name, variant in BUILT_IN.items():
            print(f"{name:12}{variant.description}")
        return
    from asymdiffrec.datasets.files.atomic import replace_file
    from asymdiffrec.trainer.evaluation.scenarios import ScenarioOptions
    from asymdiffrec.trainer.experiments.document import make_document
    from asymdiffrec.trainer.experiments.page import draw_figure, write_page
    from asymdiffrec.trainer.experiments.tasks import make_tasks, make_tasks_by_period
    from asymdiffrec.trainer.experiments.text import describe_problems, metric_table, period_table
    from asymdiffrec.trainer.job import read_job

    folder = out or Path("comparisons") / read_job(job, overrides or ()).name
    options = ScenarioOptions(parse_shares(missing), outage or (), {}, as_in_training, unseen or ())
    chosen = parse_variants([name.strip() for name in variants.split(",")], define or ())
    common = (job, chosen, seeds, overrides or (), folder, options)
    tasks = make_tasks_by_period(*common, progressive) if progressive else make_tasks(*common)
    failures = _run_tasks(tasks, parallel, address)
    with show_progress() as show:
        steps = iter(range(1, len(tasks) + 1))
        document = make_document(
            tasks, [chosen[0].name], draws, lambda: show("bootstrap", next(steps) / len(tasks)), failures
        )
    replace_file(folder / "comparison.json", json.dumps(document, indent=2).encode())
    draw_figure(document).savefig(folder / "comparison.png", dpi=110)
    write_page(document, folder / "comparison.html")
    if as_json:
        print_json(document)
    else:
        for metric in PRINTED_METRICS:
            output().print(metric_table(document, metric))
        if document["periods"]:
            output().print(period_table(document))
        print_line(f"All metrics and curves: {folder / 'comparison.html'}")
    for line in describe_problems(document):
        print_line(line)
    if failures:
        raise typer.Exit(1)


def _run_tasks(tasks: Sequence[Task], parallel: int, address: str | None) -> dict[str, Failure]:
    """Run all tasks and print a line as each ends; return the failures by the name of the task."""
    from asymdiffrec.trainer.experiments.running import Failure, try_task

    results: Iterable[tuple[Task, float | Failure]]
    if parallel == 1 and address is None:
        results = ((task, try_task(task)) for task in tasks)
    else:
        from asymdiffrec.cluster.parallel_tasks import run_in_parallel

        results = run_in_parallel(try_task, tasks, parallel, address)
    failures = {}
    for number, (task, result, seconds) in enumerate(_timed(results), start=1):
        if isinstance(result, Failure):
            failures[task.name] = result
            outcome = f"failed, traceback in {task.failure_file}: {result.message}"
        else:
            outcome = f"AUC {result:.4f}" + (f", {seconds:.0f} s" if seconds >= 1 else "")
        print_line(f"{number}/{len(tasks)}  {task.name}: {outcome}")
    return failures


def _timed(
    results: Iterable[tuple[Task, float | Failure]],
) -> Iterator[tuple[Task, float | Failure, float]]:
    """Yield each task and its result, with the seconds since the previous task ended."""
    start = time.monotonic()
    for task, result in results:
        yield task, result, time.monotonic() - start
        start = time.monotonic()
