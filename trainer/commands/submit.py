"""`asymdiffrec submit`: train a job as a Ray job on a remote cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymdiffrec.trainer.commands.job import Address, job_document, ray_jobs
from asymdiffrec.trainer.commands.options import AsJson, Overrides
from asymdiffrec.trainer.console import console, print_json

if TYPE_CHECKING:
    from asymdiffrec.trainer.job import Job


def submit(
    job_file: Annotated[
        Path, typer.Argument(metavar="JOB", help="job file; its data paths are paths on the cluster's nodes")
    ],
    run: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="run directory: an absolute path in a folder that all nodes of the cluster share"
        ),
    ],
    address: Address = None,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="number of workers; each worker uses one GPU or CPU of the cluster")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --run")] = False,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="sharding plan to use, as for `train`")] = None,
    modules: Annotated[
        list[Path] | None,
        typer.Option(
            "--module", metavar="PATH", help="folder of a Python module, or a wheel, to send with the job; repeatable"
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="end when the cluster has accepted the job")] = False,
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="print a RayJob for `kubectl apply -f -` and submit nothing")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="with --kuberay: image with this package, its dependencies and Ray"),
    ] = None,
    per_pod: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="with --kuberay: workers per pod; default: all workers if they are at most 8, otherwise the greatest "
            "common divisor of their number and 8",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="64Gi", help="with --kuberay: memory of each pod of workers")
    ] = None,
    claim: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:PATH", help="with --kuberay: persistent volume claim, and the path where all pods mount it"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a job as a Ray job and show its output until it ends; exit with the job's exit status.

    This package and the job file are sent to the cluster. The dependencies of this package must already be installed on
    the cluster. If the cluster needs a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. Ctrl-C ends this command, not
    the job.
    """
    from asymdiffrec.base import InputError
    from asymdiffrec.cluster.ray_jobs import Submission, exit_status
    from asymdiffrec.datasets.files.documents import to_yaml
    from asymdiffrec.trainer.job import read_job
    from asymdiffrec.trainer.run import read_plan_file

    if not run.is_absolute():
        raise InputError(f"--run {run}: is a relative path; give an absolute path in a folder that all nodes share")
    for module in modules or []:
        if not module.exists():
            raise InputError(f"--module {module}: does not exist")
    changes = [*(overrides or []), *([f"cluster.workers={workers}"] if workers else []), "cluster.address=auto"]
    job = read_job(job_file, changes)
    files = {"job.yaml": to_yaml(job)}
    arguments = ["train", "job.yaml", "--run", str(run), *(["--resume"] if resume else [])]
    if plan:
        read_plan_file(plan)
        files["plan.json"] = plan.read_text()
        arguments += ["--plan", "plan.json"]
    if kuberay:
        _print_manifest(job, image, per_pod, memory, claim, arguments, files)
        return
    client = ray_jobs(address)
    ray_job_id = client.submit(Submission(arguments, files, modules or [], {"run": str(run), "name": job.name}))
    console.print(f"Submitted {ray_job_id}; run directory {run}", highlight=False, soft_wrap=True)
    if detach:
        if as_json:
            print_json({"ray_job_id": ray_job_id, "run": str(run)})
        return
    try:
        details = client.follow(ray_job_id, lambda text: print(text, end="", file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        console.print(f"The job continues. To stop it: asymdiffrec job stop {ray_job_id}", soft_wrap=True)
        raise
    if as_json:
        print_json({"run": str(run), **job_document(ray_job_id, details)})
    if status := exit_status(details):
        console.print(f"{ray_job_id}: {details.status.lower()}, exit status {status}", highlight=False)
        raise typer.Exit(status)


def _print_manifest(
    job: Job,
    image: str | None,
    per_pod: int | None,
    memory: str | None,
    claim: str | None,
    arguments: list[str],
    files: dict[str, str],
) -> None:
    from asymdiffrec.base import InputError
    from asymdiffrec.cluster.kuberay import PodConfig, manifest
    from asymdiffrec.datasets.files.documents import to_yaml

    if image is None:
        raise InputError("--kuberay: needs --image, an image with this package, its dependencies and Ray")
    name, colon, path = (claim or "").partition(":")
    if claim and not (name and colon and path.startswith("/")):
        raise InputError(f"--claim {claim}: allowed is NAME:PATH with an absolute path, for example shared:/shared")
    pods = PodConfig(image, per_pod, memory, (name, path) if claim else None)
    documents = manifest(job.name, job.cluster, pods, arguments, files)
    print("---\n".join(map(to_yaml, documents)), end="")
