"""`asymdiffrec submit`: train a job as a Ray job on a remote cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asymdiffrec.trainer.commands.console import console, print_json
from asymdiffrec.trainer.commands.job import Address, cluster_errors, job_document, ray_jobs
from asymdiffrec.trainer.commands.options import AsJson, Overrides

if TYPE_CHECKING:
    from asymdiffrec.trainer.job import Job


def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="job file; its data are where the cluster sees them")],
    run: Annotated[
        Path,
        typer.Option(metavar="DIR", help="run directory: a path from / on, which all nodes of the cluster see"),
    ],
    address: Address = None,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(min=1, help="one for each GPU or CPU of the cluster to use")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --run")] = False,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="sharding plan to use, as for train")] = None,
    modules: Annotated[
        list[Path] | None,
        typer.Option("--module", metavar="PATH", help="folder of a Python module, or wheel, to take along; repeatable"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="end once the job is accepted")] = False,
    kuberay: Annotated[
        bool, typer.Option("--kuberay", help="print a RayJob for `kubectl apply -f -`, and submit nothing")
    ] = False,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="for --kuberay: has this package and what it needs")
    ] = None,
    per_pod: Annotated[
        int | None, typer.Option(min=1, help="for --kuberay: workers of a pod; left out: up to 8 that divide them")
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="64Gi", help="for --kuberay: of a pod")] = None,
    claim: Annotated[
        str | None, typer.Option(metavar="NAME:PATH", help="for --kuberay: volume claim, and where all pods see it")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a job as a Ray job, and follow it to its end; the exit status is the job's.

    This package and the job file go along, so the cluster needs no more than the dependencies. With a cluster that asks
    for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. Ctrl-C ends the following, not the job.
    """
    from asymdiffrec.base import InputError
    from asymdiffrec.cluster.submit import Submission, exit_status
    from asymdiffrec.datasets.files.documents import to_yaml
    from asymdiffrec.trainer.job import read_job
    from asymdiffrec.trainer.run import read_plan_file

    if not run.is_absolute():
        raise InputError(f"--run {run}: a path from / on is needed, which all nodes of the cluster see")
    for module in modules or []:
        if not module.exists():
            raise InputError(f"--module {module}: is not there")
    changes = [*(overrides or []), *([f"cluster.workers={workers}"] if workers else []), "cluster.address=auto"]
    config = read_job(job, changes)
    files = {"job.yaml": to_yaml(config)}
    arguments = ["train", "job.yaml", "--run", str(run), *(["--resume"] if resume else [])]
    if plan:
        read_plan_file(plan)
        files["plan.json"] = plan.read_text()
        arguments += ["--plan", "plan.json"]
    if kuberay:
        _print_manifest(config, image, per_pod, memory, claim, arguments, files)
        return
    with cluster_errors():
        jobs = ray_jobs(address)
        name = jobs.submit(Submission(arguments, files, modules or [], {"run": str(run), "name": config.name}))
        console.print(f"Submitted {name}; run directory {run}", highlight=False, soft_wrap=True)
        if detach:
            if as_json:
                print_json({"id": name, "run": str(run)})
            return
        try:
            details = jobs.follow(name, lambda text: print(text, end="", file=sys.stderr, flush=True))
        except KeyboardInterrupt:
            console.print(f"The job goes on; to stop it: asymdiffrec job stop {name}", soft_wrap=True)
            raise
    if as_json:
        print_json({"run": str(run), **job_document(name, details)})
    if status := exit_status(details):
        console.print(f"{name}: {details.status.lower()}, exit status {status}", highlight=False)
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
    from asymdiffrec.cluster.kuberay import Pods, manifest
    from asymdiffrec.datasets.files.documents import to_yaml

    if image is None:
        raise InputError("--kuberay: which --image? one with this package, its dependencies and Ray")
    name, colon, path = (claim or "").partition(":")
    if claim and not (name and colon and path.startswith("/")):
        raise InputError(f"--claim {claim}: expected NAME:PATH, such as shared:/shared")
    with cluster_errors():
        documents = manifest(
            job.name, job.cluster, Pods(image, per_pod, memory, (name, path) if claim else None), arguments, files
        )
    print("---\n".join(map(to_yaml, documents)), end="")
