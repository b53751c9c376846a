"""The command line. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands import compare, doctor, evaluate, jobs, plan, prepare, serve, top, tune
from asymdiffrec.trainer.commands.shell import AsJson, JobFile, RunFolder, Settings, console, print_json

PROFILED = 5
"""Steps that --profile traces"""

app = typer.Typer(
    name="asymdiffrec",
    help="Train recommendation models with very large embedding tables, made robust to missing features.\n\n"
    "Exit status: 0 done, 1 the job failed, 2 the input is wrong, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(prepare.app, name="prepare")
app.command()(plan.plan)
app.command()(jobs.submit)
app.add_typer(jobs.app, name="job")
app.command()(top.top)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(tune.tune)


@app.command()
def train(
    job: JobFile,
    settings: Settings = None,
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
    from asymdiffrec.cluster import torchrun_workers as under_torchrun
    from asymdiffrec.trainer.fit import train as drive
    from asymdiffrec.trainer.fit.plan_check import describe_measured
    from asymdiffrec.trainer.job import read_job, read_statistics
    from asymdiffrec.trainer.run import latest_run, new_run, read_plan_file

    overrides = list(settings or [])
    if started := under_torchrun.started():
        rank, count = started
        if rank:
            console.quiet = True  # the first worker speaks for all
            under_torchrun.follow()
            return
        if workers or address:
            raise InputError(f"torchrun has started {count} workers here; leave out --workers and --address")
        overrides += [f"cluster.workers={count}", "cluster.address=null"]
        resume = resume or under_torchrun.restarts() > 0
    overrides += [f"cluster.workers={workers}"] if workers else []
    overrides += [f"cluster.address={address}"] if address else []
    overrides += [f"train.profile={PROFILED}"] if profile else []
    if init_from:
        if resume:
            raise InputError("--init-from begins a new run; --resume goes on with one")
        overrides.append(f"train.init_from={json.dumps(str(init_from.resolve()))}")
    config = read_job(job, overrides)
    if resume:
        folder = latest_run(config, run)
        config, statistics = drive.resumed(folder, tuple(overrides)), folder.statistics()
    else:
        folder, statistics = new_run(config, run), read_statistics(config)
    result = drive.train(config, statistics, folder, console, read_plan_file(plan) if plan else None)
    if as_json:
        print_json({"run": str(folder.path), **result})
    elif result["state"] == "interrupted":
        console.print(
            f"Interrupted at step {result['step']}. Go on with: asymdiffrec train {job} --resume --run {folder.path}",
            soft_wrap=True,
        )
    else:
        best = f"{config.train.validation.metric} {result['best_value']:.4f} on validation"
        end = f"{result['state'].capitalize()} at step {result['step']}; best step {result['best_step']} ({best})"
        console.print(f"{end}. Run: {folder.path}", soft_wrap=True, highlight=False)
        if result["measured"]:
            console.print(describe_measured(result["measured"]), soft_wrap=True, highlight=False)
    if profile:
        console.print(_traced(folder.trace(0)), soft_wrap=True, highlight=False)
    if result["state"] == "interrupted":
        raise typer.Exit(130)


def _traced(file: Path) -> str:
    if not file.exists():
        return "No trace: training ended before the steps that are traced"
    return f"Trace: {file.parent}; Perfetto and chrome://tracing show it"


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    tables: Annotated[
        Literal["fp32", "fp16", "int8", "int4"],
        typer.Option(help="type of the weights of tables; the card says what it costs in AUC"),
    ] = "fp32",
    as_json: AsJson = False,
) -> None:
    """A run's best step as a folder that serves by itself: JSON, safetensors, tables to be mapped into memory."""
    from asymdiffrec.trainer.inference.export import export_run

    manifest, card = export_run(run, out, tables, console)
    if as_json:
        print_json({"run": str(run), "out": str(out), "version": manifest.version, "card": card})
        return
    aucs = [card[which]["test"][0]["auc"] for which in ("trained", "exported")]
    size = manifest.files["tables.bin"].bytes / 1e6
    console.print(
        f"Version {manifest.version}: {out}, tables of {size:,.3g} MB in {tables}; test AUC {aucs[1]:.4f} "
        f"({aucs[0]:.4f} as trained)",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory, or a folder of `export`")],
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Parquet file, folder or URI with the job's fields; labels are not needed"),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file to write: DATA's columns and `score`")],
    allow_user_classes: Annotated[
        bool, typer.Option("--allow-user-classes", help="import the classes of its own that an export names")
    ] = False,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="files of DATA at a time, under Ray, with a CPU each; OUT is a folder then, and what is there stays",
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster for --parallel; one of this machine when left out")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score samples with a run's best step, or with an export."""
    from asymdiffrec.trainer.inference.restore import predict_run

    if parallel is None:
        rows = predict_run(run, data, out, console, allow_user_classes=allow_user_classes)
    else:
        rows = _predict_files(run, data, out, allow_user_classes, parallel, address)
    if as_json:
        print_json({"run": str(run), "rows": rows, "out": str(out)})
    else:
        console.print(f"{rows:,} rows scored: {out}", soft_wrap=True)


def _predict_files(
    run: Path, data: str, out: Path, allow_user_classes: bool, parallel: int, address: str | None
) -> int:
    from asymdiffrec.trainer.inference.predict import files, predict_files

    todo, total = files(run, data, out, allow_user_classes), 0
    for number, (file, rows) in enumerate(predict_files(todo, parallel, address), start=1):
        console.print(f"{number}/{len(todo)}  {rows:,} rows  {file}", highlight=False, soft_wrap=True)
        total += rows
    return total


@app.command()
def samples(
    run: RunFolder,
    step: Annotated[int, typer.Argument(metavar="STEP", help="of the run, the first is 1")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file to write: file, row and the job's columns")],
    as_json: AsJson = False,
) -> None:
    """Write the samples that one step learns from, as the files have them: to look at those of a lost loss."""
    from asymdiffrec.trainer.fit.step_samples import write_samples
    from asymdiffrec.trainer.run import open_run

    rows = write_samples(open_run(run), step, out)
    if as_json:
        print_json({"run": str(run), "step": step, "rows": rows, "out": str(out)})
    else:
        console.print(f"{rows:,} samples of step {step}: {out}", soft_wrap=True)


app.command()(serve.serve)
app.command()(doctor.doctor)


def main() -> None:
    """Run the command; wrong input is one line on standard error and exit status 2."""
    sys.path.insert(0, "")  # as `python -m` does: an extractor of the user's own is found in the current folder
    from asymdiffrec.embeddings.quiet import quiet_torchrec

    quiet_torchrec()
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except RuntimeError as error:
        from asymdiffrec.cluster.errors import WorkerError
        from asymdiffrec.trainer.errors import CheckpointError, TrainingError

        reason = error.__cause__ if isinstance(error.__cause__, TrainingError | CheckpointError) else error
        if not isinstance(reason, TrainingError | CheckpointError | WorkerError):
            raise
        _fail(str(reason), 1)


def _fail(message: str, status: int) -> None:
    console.print(f"error: {message}", highlight=False, markup=False, soft_wrap=True)
    sys.exit(status)
