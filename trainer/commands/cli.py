"""The command line. Heavy imports wait until a command needs them, so that `--help` answers at once."""

from __future__ import annotations

import sys

import typer

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands import (
    compare,
    doctor,
    evaluate,
    export,
    job,
    plan,
    predict,
    prepare,
    samples,
    serve,
    submit,
    top,
    train,
    tune,
)
from asymdiffrec.trainer.console import console

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
app.command()(train.train)
app.command()(submit.submit)
app.add_typer(job.app, name="job")
app.command()(top.top)
app.command()(samples.samples)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(tune.tune)
app.command()(export.export)
app.command()(predict.predict)
app.command()(serve.serve)
app.command()(doctor.doctor)


def main() -> None:
    """Run the command; wrong input is one line on standard error and exit status 2."""
    sys.path.insert(0, "")  # as `python -m` does: an extractor of the user's own is found in the current folder
    from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings

    silence_torchrec_warnings()
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
        if isinstance(reason, WorkerError) and reason.traceback:
            print(reason.traceback, end="", file=sys.stderr)
        _fail(str(reason), 1)


def _fail(message: str, status: int) -> None:
    console.print(f"error: {message}", highlight=False, markup=False, soft_wrap=True)
    sys.exit(status)
