"""The command line: registers the commands and turns errors into exit statuses.

Modules that take long to import, torch above all, are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from typing import NoReturn

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
from asymdiffrec.trainer.console import print_line

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
    """Run a command.

    Wrong input gives one line on standard error and exit status 2; see `app` for the other statuses.
    """
    sys.path.insert(0, "")  # as `python -m` does: the user's own classes are imported from the current folder
    from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings

    silence_torchrec_warnings()
    try:
        app()
    except InputError as error:
        _exit_with(str(error), 2)
    except KeyboardInterrupt:
        _exit_with("interrupted", 130)
    except RuntimeError as error:
        from asymdiffrec.cluster.errors import WorkerError
        from asymdiffrec.trainer.errors import CheckpointError, TrainingError

        reason = error.__cause__ if isinstance(error.__cause__, TrainingError | CheckpointError) else error
        if not isinstance(reason, TrainingError | CheckpointError | WorkerError):
            raise
        if isinstance(reason, WorkerError) and reason.traceback:
            print(reason.traceback, end="", file=sys.stderr)
        _exit_with(str(reason), 1)


def _exit_with(message: str, status: int) -> NoReturn:
    print_line(f"error: {message}")
    sys.exit(status)
