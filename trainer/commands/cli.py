"""The command line. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from asymdiffrec.datasets.errors import InputError
from asymdiffrec.trainer.commands import doctor, jobs, plan, prepare, top
from asymdiffrec.trainer.commands.shell import AsJson, Settings, console, print_json

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

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="job file, as `prepare` writes one")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="run directory, as `train` makes one")]

app.add_typer(prepare.app, name="prepare")
app.command()(plan.plan)
app.command()(jobs.submit)
app.add_typer(jobs.app, name="job")
app.command()(top.top)


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
    from asymdiffrec.cluster import under_torchrun
    from asymdiffrec.trainer import drive
    from asymdiffrec.trainer.job import read_job, read_learned
    from asymdiffrec.trainer.measured import describe_measured
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
        config, learned = drive.resumed(folder, tuple(overrides)), folder.learned()
    else:
        folder, learned = new_run(config, run), read_learned(config)
    result = drive.train(config, learned, folder, console, read_plan_file(plan) if plan else None)
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
def evaluate(
    run: RunFolder,
    missing: Annotated[
        str, typer.Option(metavar="R,R,…", help="shares of the present fields to drop, independently")
    ] = "0",
    split: Annotated[str, typer.Option(help="train, valid or test")] = "test",
    tables: Annotated[
        Literal["fp16", "int8", "int4"] | None,
        typer.Option(help="round the weights of tables to this type first, as for serving"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """AUC, UAUC, log loss, normalised entropy and calibration of a run's best step, with features missing."""
    from asymdiffrec.trainer.restore import evaluate_run

    shares = _shares(missing)
    found = evaluate_run(run, split, shares, console, tables)
    if as_json:
        rounded = {"dtype": tables, "bytes": found.table_bytes[1]} if tables and found.table_bytes else None
        document = {"run": str(run), "step": found.step, "split": split, "tables": rounded, "results": found.results}
        print_json(document)
    else:
        Console().print(_table(run, found.step, split, found.results))
        if tables and found.table_bytes:
            before, after = (size / 1e6 for size in found.table_bytes)
            console.print(f"Tables rounded to {tables}: {after:,.3g} MB of weights, {before:,.3g} MB as trained")


def _shares(text: str) -> list[float]:
    from asymdiffrec.datasets.errors import InputError

    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        raise InputError(f"--missing {text}: expected numbers in [0, 1], such as 0,0.1,0.3,0.5")
    return shares


def _table(run: Path, step: int, split: str, results: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    names = {
        "auc": "AUC",
        "uauc": "UAUC",
        "log_loss": "log loss",
        "normalized_entropy": "norm. entropy",
        "calibration": "calibration",
    }
    first = results[0]
    table = Table(title=f"{run}\n{split} split, {first['rows']:,} rows, step {step}")
    if first["uauc_users"]:
        table.caption = (
            f"UAUC over {first['uauc_users']:,} users; left out for having labels of one kind: "
            f"{first['uauc_users_left_out']:,}"
        )
    else:
        del names["uauc"]
    table.add_column("missing", justify="right")
    for name in names.values():
        table.add_column(name, justify="right")
    for result in results:
        values = [result[name] for name in names]
        table.add_row(f"{100 * result['missing']:g}%", *("-" if value is None else f"{value:.4f}" for value in values))
    return table


@app.command()
def predict(
    run: RunFolder,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Parquet file, folder or URI with the job's fields; labels are not needed"),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file to write: DATA's columns and `score`")],
    as_json: AsJson = False,
) -> None:
    """Score samples with a run's best step."""
    from asymdiffrec.trainer.restore import predict_run

    rows = predict_run(run, data, out, console)
    if as_json:
        print_json({"run": str(run), "rows": rows, "out": str(out)})
    else:
        console.print(f"{rows:,} rows scored: {out}", soft_wrap=True)


@app.command()
def samples(
    run: RunFolder,
    step: Annotated[int, typer.Argument(metavar="STEP", help="of the run, the first is 1")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Parquet file to write: file, row and the job's columns")],
    as_json: AsJson = False,
) -> None:
    """Write the samples that one step learns from, as the files have them: to look at those of a lost loss."""
    from asymdiffrec.trainer.run import open_run
    from asymdiffrec.trainer.samples import write_samples

    rows = write_samples(open_run(run), step, out)
    if as_json:
        print_json({"run": str(run), "step": step, "rows": rows, "out": str(out)})
    else:
        console.print(f"{rows:,} samples of step {step}: {out}", soft_wrap=True)


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
