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
"""Steps that --profile traces"""


def train(
    job: JobFile,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="one runs in this process, more run under Ray Train")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on; left out: this machine")] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="run directory; runs/NAME/UTC-TIME when left out")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the newest run of the job, or with --run")
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="start from the weights of another run, as far as its job fits"),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="sharding plan to use, from `plan --json` or another run's plan.json"),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="leave a trace of five steps of each worker in RUN/profile")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a job. Ctrl-C stops with a checkpoint; --resume goes on from the newest one.

    Where torchrun starts this command, as in `torchrun --nproc-per-node 4 -m asymdiffrec train JOB`, its processes are
    the workers.
    """
    from asymdiffrec.cluster import torchrun_workers
    from asymdiffrec.trainer.fit.plan_check import describe_measured
    from asymdiffrec.trainer.fit.train import resumed_job, train_job
    from asymdiffrec.trainer.job import read_job, read_statistics
    from asymdiffrec.trainer.run import RunOutcome, latest_run, new_run, read_plan_file

    changes = list(overrides or [])
    if started := torchrun_workers.rank_and_world_size():
        rank, count = started
        if rank:
            console.quiet = True  # the first worker speaks for all
            torchrun_workers.follow()
            return
        if workers or address:
            raise InputError(f"torchrun has started {count} workers here; leave out --workers and --address")
        changes += [f"cluster.workers={count}", "cluster.address=null"]
        resume = resume or torchrun_workers.restart_count() > 0
    changes += [f"cluster.workers={workers}"] if workers else []
    changes += [f"cluster.address={address}"] if address else []
    changes += [f"train.profile={PROFILED_STEPS}"] if profile else []
    if init_from:
        if resume:
            raise InputError("--init-from begins a new run; --resume goes on with one")
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
            f"Interrupted at step {result['step']}. Go on with: asymdiffrec train {job} --resume --run {folder.path}",
            soft_wrap=True,
        )
    else:
        best = f"{config.train.validation.metric} {result['best_value']:.4f} on validation"
        end = f"{result['outcome'].capitalize()} at step {result['step']}; best step {result['best_step']} ({best})"
        console.print(f"{end}. Run: {folder.path}", soft_wrap=True, highlight=False)
        if result["measured"]:
            console.print(describe_measured(result["measured"]), soft_wrap=True, highlight=False)
    if profile:
        console.print(_traced(folder.trace(0)), soft_wrap=True, highlight=False)
    if result["outcome"] == RunOutcome.INTERRUPTED:
        raise typer.Exit(130)


def _traced(file: Path) -> str:
    if not file.exists():
        return "No trace: training ended before the steps that are traced"
    return f"Trace: {file.parent}; Perfetto and chrome://tracing show it"
