"""`asymdiffrec train`: train a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.options import AsJson, JobFile, Overrides
from asymdiffrec.trainer.console import console, print_json

PROFILED_STEPS = 5
"""Number of steps that --profile traces"""


def train(
    job: JobFile,
    overrides: Overrides = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="number of workers: one runs in this process, more run under Ray Train; default: cluster.workers of "
            "the job file",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="address of the Ray cluster to run on; default: this host")
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="DIR", help="run directory; default: runs/NAME/UTC-TIME")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the newest run of the job, or the run in --run")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="start from the weights of another run's best step, as far as they fit this job"
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="sharding plan to use, from `plan --json` or another run's plan.json"),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help=f"write a trace of {PROFILED_STEPS} steps of each worker to RUN/profile")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a job. Ctrl-C stops with a checkpoint; --resume continues from the newest checkpoint.

    If torchrun starts this command, for example `torchrun --nproc-per-node 4 -m asymdiffrec train JOB`, its processes
    are the workers.
    """
    from asymdiffrec.cluster import torchrun_workers
    from asymdiffrec.trainer.fit.plan_check import describe_measured
    from asymdiffrec.trainer.fit.resume import resumed_job
    from asymdiffrec.trainer.fit.train import train_job
    from asymdiffrec.trainer.job import read_job, read_statistics
    from asymdiffrec.trainer.run import RunOutcome, latest_run, new_run, read_plan_file

    changes = list(overrides or [])
    if started := torchrun_workers.rank_and_world_size():
        rank, count = started
        if rank:
            console.quiet = True  # the first worker prints for all
            torchrun_workers.follow()
            return
        if workers or address:
            raise InputError(f"--workers and --address: torchrun has started {count} workers; leave these options out")
        changes += [f"cluster.workers={count}", "cluster.address=null"]
        resume = resume or torchrun_workers.restart_count() > 0
    changes += [f"cluster.workers={workers}"] if workers else []
    changes += [f"cluster.address={address}"] if address else []
    changes += [f"train.profile={PROFILED_STEPS}"] if profile else []
    if init_from:
        if resume:
            raise InputError("--init-from starts a new run and --resume continues one; use one of them")
        changes.append(f"train.init_from={json.dumps(str(init_from.resolve()))}")
    config = read_job(job, changes)
    if resume:
        folder = latest_run(config, run)
        config, statistics = resumed_job(folder, tuple(changes)), folder.statistics()
    else:
        folder, statistics = new_run(config, run), read_statistics(config)
    result = train_job(config, statistics, folder, console, read_plan_file(plan) if plan else None)
    if as_json:
        print_json({"run": str(folder.path), **result})
    elif result["outcome"] == RunOutcome.INTERRUPTED:
        console.print(
            f"Interrupted at step {result['step']}. Continue with: asymdiffrec train {job} --resume "
            f"--run {folder.path}",
            soft_wrap=True,
        )
    else:
        best = f"{config.train.validation.metric} {result['best_value']:.4f} on validation"
        console.print(
            f"{result['outcome'].capitalize()} at step {result['step']}; best step {result['best_step']} ({best}). "
            f"Run: {folder.path}",
            soft_wrap=True,
            highlight=False,
        )
        if result["measured"]:
            console.print(describe_measured(result["measured"]), soft_wrap=True, highlight=False)
    if profile:
        console.print(_describe_trace(folder.trace(0)), soft_wrap=True, highlight=False)
    if result["outcome"] == RunOutcome.INTERRUPTED:
        raise typer.Exit(130)


def _describe_trace(file: Path) -> str:
    if not file.exists():
        return "No trace: training ended before the first step to trace"
    return f"Trace: {file.parent}; open it with Perfetto or chrome://tracing"
