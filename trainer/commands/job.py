"""`asymdiffrec job`: show the status or the logs of a Ray job that `asymdiffrec submit` started, or stop it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from asymdiffrec.trainer.commands.options import AsJson
from asymdiffrec.trainer.console import console, print_json

if TYPE_CHECKING:
    from asymdiffrec.cluster.ray_jobs import JobDetails

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="URL of the cluster's dashboard, for example http://127.0.0.1:8265; default: the environment variable "
        "RAY_ADDRESS",
    ),
]
RayJobId = Annotated[str, typer.Argument(metavar="ID", help="id of the Ray job, as `submit` prints it")]

app = typer.Typer(help="Show the status or the logs of a submitted job, or stop it.", no_args_is_help=True)


@app.command()
def status(ray_job_id: RayJobId, address: Address = None, as_json: AsJson = False) -> None:
    """Show whether a job waits, runs or has ended, and its exit status."""
    details = ray_jobs(address).describe(ray_job_id)
    _print_details(ray_job_id, details, as_json)


@app.command()
def logs(
    ray_job_id: RayJobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="print new output until the job ends")] = False,
) -> None:
    """Print the output of a job."""
    if follow:
        ray_jobs(address).follow(ray_job_id, lambda text: print(text, end="", flush=True))
    else:
        print(ray_jobs(address).logs(ray_job_id), end="")


@app.command()
def stop(
    ray_job_id: RayJobId,
    address: Address = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="seconds until Ray kills a job that has not ended with a checkpoint")
    ] = 120,
    as_json: AsJson = False,
) -> None:
    """Stop a job with a checkpoint, from which `submit --resume` continues."""
    with console.status("waiting for a checkpoint"):
        details = ray_jobs(address).stop(ray_job_id, seconds)
    _print_details(ray_job_id, details, as_json)


def ray_jobs(address: str | None) -> Any:
    """Return the client for the Ray jobs of a cluster."""
    from asymdiffrec.cluster.ray_jobs import RayJobs  # Ray takes seconds to import

    return RayJobs(address)


def job_document(ray_job_id: str, details: JobDetails) -> dict[str, Any]:
    """Return the document that `--json` prints about a Ray job."""
    from asymdiffrec.cluster.ray_jobs import exit_status

    status = exit_status(details) if details.status.is_terminal() else None
    return {
        "ray_job_id": ray_job_id,
        "status": details.status.lower(),
        "exit_status": status,
        "message": details.message,
    }


def _print_details(ray_job_id: str, details: JobDetails, as_json: bool) -> None:
    document = job_document(ray_job_id, details)
    if as_json:
        print_json(document)
        return
    status = "" if document["exit_status"] is None else f", exit status {document['exit_status']}"
    console.print(f"{ray_job_id}: {document['status']}{status}", highlight=False, soft_wrap=True)
