"""`asymdiffrec job`: status, logs and stop of a Ray job that `asymdiffrec submit` started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asymdiffrec.trainer.commands.console import console, print_json
from asymdiffrec.trainer.commands.options import AsJson

if TYPE_CHECKING:
    from asymdiffrec.cluster.submit import JobDetails

Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="of the cluster's dashboard, http://127.0.0.1:8265; left out: RAY_ADDRESS"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="as `submit` prints it")]

app = typer.Typer(help="What became of a job that was submitted: status, logs, stop.", no_args_is_help=True)


@app.command()
def status(job: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Whether a job waits, runs or has ended, and how."""
    with cluster_errors():
        details = ray_jobs(address).describe(job)
    _show(job, details, as_json)


@app.command()
def logs(
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="until the job ends")] = False,
) -> None:
    """What a job has printed."""
    with cluster_errors():
        if follow:
            ray_jobs(address).follow(job, lambda text: print(text, end="", flush=True))
        else:
            print(ray_jobs(address).logs(job), end="")


@app.command()
def stop(
    job: JobId,
    address: Address = None,
    seconds: Annotated[float, typer.Option(min=0, help="to write a checkpoint in; then the job is ended")] = 120,
    as_json: AsJson = False,
) -> None:
    """Stop a job with a checkpoint, from which `submit --resume` goes on."""
    with cluster_errors(), console.status("waiting for a checkpoint"):
        details = ray_jobs(address).stop(job, seconds)
    _show(job, details, as_json)


def ray_jobs(address: str | None) -> Any:
    """Return the client for the Ray jobs of a cluster."""
    from asymdiffrec.cluster.submit import Jobs

    return Jobs(address)


def _show(job: str, details: JobDetails, as_json: bool) -> None:
    document = job_document(job, details)
    if as_json:
        print_json(document)
        return
    ended = "" if document["exit_status"] is None else f", exit status {document['exit_status']}"
    console.print(f"{job}: {document['status']}{ended}", highlight=False, soft_wrap=True)


def job_document(job: str, details: JobDetails) -> dict[str, Any]:
    """Return what `--json` prints about a Ray job."""
    from asymdiffrec.cluster.submit import exit_status

    ended = exit_status(details) if details.status.is_terminal() else None
    return {"id": job, "status": details.status.lower(), "exit_status": ended, "message": details.message}


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Raise InputError in place of an error of the cluster."""
    from asymdiffrec.base import InputError
    from asymdiffrec.cluster.errors import ClusterError

    try:
        yield
    except ClusterError as error:
        raise InputError(str(error)) from error
