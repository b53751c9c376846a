"""`asymdiffrec plan`: plan the sharding of a job's tables, for a cluster that need not be available."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.options import AsJson, Overrides
from asymdiffrec.trainer.console import console, print_json
from asymdiffrec.trainer.planning.terminal import show_advice, show_plan, show_sweep, show_unfit

if TYPE_CHECKING:
    from asymdiffrec.datasets.statistics.statistics import Statistics
    from asymdiffrec.embeddings.planner.devices import Cluster, Device
    from asymdiffrec.embeddings.planner.plan import Solution
    from asymdiffrec.trainer.job import Job

DEFAULT_GPU = "h100"


def plan(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="job file; its data need not exist yet", show_default=False)
    ] = None,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None,
        typer.Option(help="number of hosts; default: 1 with --gpus-per-node, else the smallest cluster that fits"),
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="number of GPUs of each host; default: 8")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="a100-40, a100-80, h100, h200, b200, l4, l40, cpu, or a YAML file with a device's figures; with "
            "--sweep, several separated by commas; default: cluster.device of the job, else h100",
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="gpus=N,N,…", help="compare clusters with these numbers of GPUs")
    ] = None,
    num_embeddings_from_data: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="choose num_embeddings of hashed tables so that this fraction of ids collides with another id",
        ),
    ] = None,
    advise: Annotated[bool, typer.Option(help="try changes to the job and show their effect")] = True,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="check the plan with TorchRec on the slowest and the fullest rank, without memory for the tables",
        ),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="measure this host and write a file for --gpu and cluster.device"),
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a page with charts")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan the sharding of a job's tables: whether they fit, the step time, and changes that improve it.

    Needs no GPU, no cluster and no memory for the tables. Without --nodes and --gpus-per-node it finds the smallest
    cluster that fits. `plan --json > plan.json` writes a file for `train --plan plan.json`.
    """
    # Garbage collection would take a third of the run time, in imports and at exit, and free little memory.
    gc.disable()
    atexit.register(gc.freeze)
    with _without_torchscript():
        from asymdiffrec.embeddings.planner.devices import find_device
        from asymdiffrec.trainer.job import read_job
        from asymdiffrec.trainer.planning.what_if import DEFAULT_GPUS_PER_NODE

    for name, file in (("--html", page), ("--calibrate", calibrate)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise InputError(f"{name} {file}: a directory, or a file in a directory that does not exist")
    if sweep is not None and (page or verify or nodes):
        raise InputError("--sweep cannot be combined with --html, --verify or --nodes")
    if calibrate is not None:
        _calibrate(calibrate, as_json)
        return
    if job is None:
        raise InputError("plan: no job file is given; pass JOB, or use --calibrate FILE")
    for name, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: must be at least 1")
    config = read_job(job, overrides or ())
    option = "--gpu" if gpu else "cluster.device"
    devices = [find_device(name.strip(), option) for name in (gpu or config.cluster.device or DEFAULT_GPU).split(",")]
    config, statistics, notes = _with_statistics(config, num_embeddings_from_data)
    per_node = gpus_per_node or DEFAULT_GPUS_PER_NODE
    if sweep is not None:
        _sweep(config, statistics, sweep, devices, per_node, as_json)
        return
    if len(devices) > 1:
        raise InputError(f"{option}: several GPUs can only be compared with --sweep, such as --sweep gpus=8,16")
    gpus = (nodes or 1) * per_node if nodes or gpus_per_node else None
    solution = _solution_or_exit(config, statistics, devices[0], gpus, per_node, advise, as_json)
    if gpus is None:
        notes.append("this is the smallest cluster that fits; set --nodes and --gpus-per-node for another size")
    notes += _cautions(config, solution) + ([_verification(solution)] if verify else [])
    _show(config, statistics, solution, notes, advise, page, as_json)


@contextmanager
def _without_torchscript() -> Iterator[None]:
    """Disable TorchScript during imports: compiling torch's optimizers with it takes a tenth of the run time."""
    before = os.environ.get("PYTORCH_JIT")
    os.environ["PYTORCH_JIT"] = "0"
    try:
        yield
    finally:
        del os.environ["PYTORCH_JIT"]
        if before is not None:
            os.environ["PYTORCH_JIT"] = before


def _calibrate(file: Path, as_json: bool) -> None:
    import yaml

    from asymdiffrec.embeddings.planner.calibrate import calibrate

    with console.status("measuring") as status:
        device = calibrate(file.stem, lambda step: status.update(f"measuring {step}"))
    figures = device.model_dump()
    file.write_text(yaml.safe_dump(figures, sort_keys=False))
    if as_json:
        print_json(figures)
        return
    units = {"memory": "GB", "host_memory": "GB", "flops": "TFLOP/s"}
    for name, value in figures.items():
        if isinstance(value, float) and value:
            console.print(f"{name} {value:.4g} {units.get(name, 'GB/s')}", highlight=False)
    if device.kind == "cpu":
        console.print(
            f"`memory` in {file} is the memory of the whole host: divide it by the number of workers per host",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Use it with: asymdiffrec plan JOB --gpu {file}", soft_wrap=True)


def _with_statistics(job: Job, collisions: float | None) -> tuple[Job, Statistics | None, list[str]]:
    """Return the job, the statistics of its data if they exist, and notes for the user.

    If `collisions` is given, num_embeddings of hashed tables is set so that this share of the ids collides.
    """
    from asymdiffrec.datasets.files.locations import location_exists
    from asymdiffrec.trainer.job import read_statistics
    from asymdiffrec.trainer.planning.what_if import num_embeddings_from_data

    if not location_exists(job.location("statistics.yaml")):
        if collisions is not None:
            raise InputError(
                f"--num-embeddings-from-data: {job.location('statistics.yaml')} does not exist; prepare the data first"
            )
        note = (
            "statistics.yaml does not exist: the plan assumes expected_length ids per sample for a list, and one id "
            "per sample for other sparse fields"
        )
        return job, None, [note]
    statistics = read_statistics(job)
    if collisions is None:
        return job, statistics, []
    job, sizes = num_embeddings_from_data(job, statistics, collisions)
    text = ", ".join(f"{table} {size:,}" for table, size in sizes.items())
    return job, statistics, [f"num_embeddings from the data, so that {collisions:.1%} of ids collide: {text}"]


def _sweep(
    job: Job,
    statistics: Statistics | None,
    option: str,
    devices: list[Device],
    gpus_per_node: int,
    as_json: bool,
) -> None:
    from asymdiffrec.embeddings.planner.step_time import step_time_cautions
    from asymdiffrec.trainer.planning import what_if

    sizes = _sweep_sizes(option)
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    with console.status("planning") as status:
        for device, gpus, solution, why in what_if.sweep(job, statistics, devices, sizes, gpus_per_node):
            row = {"gpu": device.name, "gpus": gpus, "fits": solution is not None}
            rows.append(row | (_sweep_figures(solution) if solution else {"why": why}))
            notes |= dict.fromkeys(step_time_cautions(solution.problem.cluster) if solution else ())
            status.update(f"planned {len(rows)} of {len(devices) * len(sizes)}")
    document = {"clusters": rows, "notes": list(notes)}
    if as_json:
        print_json(document)
    else:
        show_sweep(document)


def _sweep_sizes(option: str) -> list[int]:
    """Return the numbers of GPUs in `gpus=N,N,...`. Raises InputError if `option` has another form."""
    name, equals, text = option.partition("=")
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if name != "gpus" or not equals or not sizes or min(sizes) < 1:
        raise InputError(f"--sweep {option}: expected numbers of GPUs, such as gpus=8,16,32")
    return sizes


def _sweep_figures(solution: Solution) -> dict[str, Any]:
    from asymdiffrec.embeddings.planner.plan_document import bottleneck

    rate = solution.step.samples_per_second
    return {
        "step_milliseconds": solution.step.milliseconds,
        "samples_per_second": rate,
        "gpu_hours_per_billion": solution.problem.cluster.world_size * 1e9 / rate / 3600,
        "memory_share": bottleneck(solution)["memory_share"],
    }


def _solution_or_exit(
    job: Job,
    statistics: Statistics | None,
    device: Device,
    gpus: int | None,
    gpus_per_node: int,
    advise: bool,
    as_json: bool,
) -> Solution:
    """Return the plan for `gpus` GPUs, or for the smallest cluster that fits if `gpus` is None.

    If the tables do not fit, print the reason and the changes that make them fit, and exit with status 2.
    """
    from asymdiffrec.embeddings.planner.plan import DoesNotFitError
    from asymdiffrec.embeddings.planner.plan_document import unfit_document
    from asymdiffrec.trainer.planning import what_if

    try:
        with console.status("planning"):
            if gpus is None:
                return what_if.smallest(job, statistics, device, gpus_per_node)
            return what_if.plan(job, statistics, what_if.cluster_of(device, gpus, gpus_per_node))
    except DoesNotFitError as error:
        cluster = what_if.cluster_of(device, gpus or what_if.MAX_GPUS, gpus_per_node)
        document = unfit_document(cluster, str(error))
        document["advice"] = _advice(job, statistics, cluster, None, advise)
        _exit_unfit(document, as_json)


def _exit_unfit(document: dict[str, Any], as_json: bool) -> NoReturn:
    if as_json:
        print_json(document)
        raise InputError(document["why"])
    show_unfit(document)
    raise typer.Exit(2)


def _show(
    job: Job,
    statistics: Statistics | None,
    solution: Solution,
    notes: list[str],
    advise: bool,
    page: Path | None,
    as_json: bool,
) -> None:
    """Print the plan and the advice, as JSON or as tables, and write the HTML page if `page` is given."""
    from asymdiffrec.embeddings.planner.plan_document import plan_document

    document = plan_document(solution)
    document["notes"] = notes
    if not as_json:
        show_plan(document)  # before the advice, which takes longer
    document["advice"] = _advice(job, statistics, solution.problem.cluster, solution, advise)
    if page is not None:
        from asymdiffrec.trainer.planning.html_page import write_page

        write_page(document, job.name, page)
        console.print(f"Page: {page}", soft_wrap=True)
    if as_json:
        print_json(document)
    elif document["advice"]:
        show_advice(document)


def _advice(
    job: Job, statistics: Statistics | None, cluster: Cluster, solution: Solution | None, advise: bool
) -> list[dict[str, Any]]:
    """Return the changes that help, with their effects; an empty list if `advise` is false."""
    from asymdiffrec.trainer.planning.advice import advice, change_document

    if not advise:
        return []
    with console.status("trying changes") as status:
        changes = advice(job, statistics, cluster, solution, lambda change: status.update(f"trying {change}"))
    return [change_document(change, solution) for change in changes]


def _verification(solution: Solution) -> str:
    """Let TorchRec shard the slowest and the fullest rank, and return a note that their shards match the plan."""
    from asymdiffrec.embeddings.planner.plan_document import bottleneck
    from asymdiffrec.embeddings.planner.verification import verify_plan

    limits, problem = bottleneck(solution), solution.problem
    ranks = sorted({limits["rank"], limits["fullest_rank"]})
    cluster = problem.cluster
    with console.status("verifying"):
        verify_plan(problem.model, solution.plan, problem.sharder, cluster.world_size, cluster.local_world_size, ranks)
    return f"verified: TorchRec shards rank {' and '.join(map(str, ranks))} as planned"


def _cautions(job: Job, solution: Solution) -> list[str]:
    """Return the reasons why training cannot follow the plan, or why the step time may be wrong."""
    from asymdiffrec.embeddings.planner.step_time import step_time_cautions

    ranks, cautions = solution.problem.cluster.world_size, []
    if job.data.lanes % ranks:
        cautions.append(
            f"training on {ranks} ranks needs data.lanes to be a multiple of {ranks}; it is {job.data.lanes}"
        )
    if left := job.train.batch_size - solution.step.batch_size:
        cautions.append(
            f"train.batch_size is not a multiple of {ranks}, the number of ranks: the plan has {left} samples fewer "
            "per step"
        )
    return cautions + step_time_cautions(solution.problem.cluster)
