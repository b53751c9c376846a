"""`asymdiffrec plan`: what the user asks, and how it is answered."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands.options import AsJson, Overrides
from asymdiffrec.trainer.console import console, print_json
from asymdiffrec.trainer.planning.text import show_advice, show_plan, show_sweep, show_unfit

if TYPE_CHECKING:
    from asymdiffrec.datasets.statistics.statistics import Statistics
    from asymdiffrec.embeddings.planner.devices import Cluster, Device
    from asymdiffrec.embeddings.planner.plan import Solution
    from asymdiffrec.trainer.job import Job

DEFAULT_GPU = "h100"


def plan(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="job file; its data need not be there", show_default=False)
    ] = None,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None, typer.Option(help="machines; where --gpus-per-node is left out too: the fewest that do")
    ] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a machine; 8 when left out")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="a100-40, a100-80, h100, h200, b200, l4, l40, cpu, or a YAML file with a device's figures; several "
            "with --sweep. Left out: cluster.device of the job, else h100",
        ),
    ] = None,
    planner: Annotated[Literal["fast", "torchrec"], typer.Option(help="ours, or TorchRec's own")] = "fast",
    sweep: Annotated[
        str | None, typer.Option(metavar="gpus=N,N,…", help="compare clusters of so many GPUs side by side")
    ] = None,
    rows_from_data: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="rows of hashed tables for this share of ids that share their row"),
    ] = None,
    advise: Annotated[bool, typer.Option(help="try changes to the job and say what they would do")] = True,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="let TorchRec shard the slowest and the fullest rank, without memory")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="measure this machine; write a file for --gpu and cluster.device"),
    ] = None,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a page with pictures")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan how a job's tables are sharded, on a cluster that need not be here: does it fit, how fast, what would help.

    Needs no GPU and no memory for the tables. Without --nodes and --gpus-per-node it looks for the smallest cluster.
    `plan --json > plan.json` is what `train --plan plan.json` takes.
    """
    # Looking for garbage takes a third of the time, in imports and at the end, and there is little.
    gc.disable()
    atexit.register(gc.freeze)
    with _without_torchscript():
        from asymdiffrec.embeddings.planner.plan import DoesNotFitError
        from asymdiffrec.embeddings.planner.plan_document import plan_document, unfit_document
        from asymdiffrec.trainer.job import read_job
        from asymdiffrec.trainer.planning import what_if

    for name, file in (("--html", page), ("--calibrate", calibrate)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise InputError(f"{name} {file}: no file can be written there")
    if sweep is not None and (page or rehearse or nodes):
        raise InputError("--sweep goes with none of --html, --rehearse and --nodes")
    if calibrate is not None:
        _calibrate(calibrate, as_json)
        return
    if job is None:
        raise InputError("plan: which job? name its file, or a file for --calibrate")
    for name, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value}: at least one is needed")
    config = read_job(job, overrides or ())
    devices = _devices(gpu or config.cluster.device or DEFAULT_GPU)
    config, statistics, notes = _informed(config, rows_from_data)
    per_node = gpus_per_node or what_if.PER_NODE
    if sweep is not None:
        _sweep(config, statistics, sweep, devices, per_node, planner, as_json)
        return
    if len(devices) > 1:
        raise InputError(f"--gpu {gpu}: several GPUs are compared with --sweep gpus=8,16")
    size = (nodes or 1) * per_node if nodes or gpus_per_node else None
    try:
        solution = _solved(config, statistics, devices[0], size, per_node, planner)
    except DoesNotFitError as error:
        cluster = what_if.cluster_of(devices[0], size or what_if.LARGEST, per_node)
        for name in ["--html"] * bool(page) + ["--rehearse"] * rehearse:
            console.print(f"{name}: nothing to do without a plan", highlight=False)
        _refuse(unfit_document(cluster, str(error)), _advice(config, statistics, cluster, None, advise), as_json)
    if size is None:
        notes.append("the smallest cluster that fits; --nodes and --gpus-per-node name another size")
    document = plan_document(solution)
    document["notes"] = notes + _cautions(config, solution) + ([_rehearsed(solution)] if rehearse else [])
    if not as_json:
        show_plan(document)
    document["advice"] = _advice(config, statistics, solution.problem.cluster, solution, advise)
    if page is not None:
        from asymdiffrec.trainer.planning.page import write_page

        write_page(document, config.name, page)
        console.print(f"Page: {page}", soft_wrap=True)
    if as_json:
        print_json(document)
    elif document["advice"]:
        show_advice(document)


@contextmanager
def _without_torchscript() -> Iterator[None]:
    """Nothing here uses it, and torch's optimizers are compiled by it as they are imported: a tenth of the time."""
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
        device = calibrate(file.stem, lambda what: status.update(f"measuring {what}"))
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
        console.print("memory is the whole machine's: divide it among the workers of one", highlight=False)
    console.print(f"Use it with: asymdiffrec plan JOB --gpu {file}", soft_wrap=True)


def _devices(names: str) -> list[Device]:
    from asymdiffrec.embeddings.planner.devices import device_of

    try:
        return [device_of(name.strip()) for name in names.split(",")]
    except InputError as error:
        raise InputError(f"--gpu {error}") from error


def _informed(job: Job, rows_for: float | None) -> tuple[Job, Statistics | None, list[str]]:
    """The job, with rows from the data for a share of ids `rows_for` if it is given; what was learned of the data,
    where they are prepared; and what is to be said of both."""
    from asymdiffrec.datasets.files.locations import location_exists
    from asymdiffrec.trainer.job import read_statistics
    from asymdiffrec.trainer.planning.what_if import rows_from_data

    if not location_exists(job.location("statistics.yaml")):
        if rows_for is not None:
            raise InputError(
                "--rows-from-data: there is no statistics.yaml beside the job's data yet; prepare them first"
            )
        lengths = "no data beside the job: ids are taken to come once a sample, or expected_length times in a list"
        return job, None, [lengths]
    statistics = read_statistics(job)
    if rows_for is None:
        return job, statistics, []
    job, rows = rows_from_data(job, statistics, rows_for)
    counts = ", ".join(f"{table} {count:,}" for table, count in rows.items())
    return job, statistics, [f"rows from the data, for {rows_for:.1%} of ids that share one: {counts}"]


def _sweep(
    job: Job,
    statistics: Statistics | None,
    asked: str,
    devices: list[Device],
    per_node: int,
    planner: str,
    as_json: bool,
) -> None:
    from asymdiffrec.embeddings.planner.step_time import doubts
    from asymdiffrec.trainer.planning import what_if

    name, equals, text = asked.partition("=")
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if name != "gpus" or not equals or not sizes or min(sizes) < 1:
        raise InputError(f"--sweep {asked}: expected numbers of GPUs, such as gpus=8,16,32")
    rows: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    with console.status("planning") as status:
        for device, ranks, solution, why in what_if.sweep(job, statistics, devices, sizes, per_node, planner):
            row = {"gpu": device.name, "gpus": ranks, "fits": solution is not None}
            rows.append(row | (_figures(solution) if solution else {"why": why}))
            notes |= dict.fromkeys(doubts(solution.problem.cluster) if solution else ())
            status.update(f"planned {len(rows)} of {len(devices) * len(sizes)}")
    document = {"clusters": rows, "notes": list(notes)}
    if as_json:
        print_json(document)
    else:
        show_sweep(document)


def _figures(solution: Solution) -> dict[str, Any]:
    from asymdiffrec.embeddings.planner.plan_document import what_binds

    rate = solution.step.samples_per_second
    return {
        "step_milliseconds": solution.step.milliseconds,
        "samples_per_second": rate,
        "gpu_hours_per_billion": solution.problem.cluster.ranks * 1e9 / rate / 3600,
        "memory_share": what_binds(solution)["memory_share"],
    }


def _solved(
    job: Job, statistics: Statistics | None, device: Device, size: int | None, per_node: int, planner: str
) -> Solution:
    """The plan for so many GPUs, or for the fewest that do. Raises DoesNotFitError."""
    from asymdiffrec.trainer.planning import what_if

    with console.status("planning"):
        if size is None:
            return what_if.smallest(job, statistics, device, per_node, planner)
        return what_if.plan(job, statistics, what_if.cluster_of(device, size, per_node), planner)


def _advice(
    job: Job, statistics: Statistics | None, cluster: Cluster, solution: Solution | None, wanted: bool
) -> list[dict[str, Any]]:
    """Changes that would help, with their effects; none unless `wanted`."""
    from asymdiffrec.trainer.planning.advice import advice, describe_change

    if not wanted:
        return []
    with console.status("trying changes") as status:
        changes = advice(job, statistics, cluster, solution, lambda what: status.update(f"trying {what}"))
    return [describe_change(change, solution) for change in changes]


def _rehearsed(solution: Solution) -> str:
    """What is said of the ranks that were sharded on meta tensors and hold what the plan says."""
    from asymdiffrec.embeddings.planner.plan_document import what_binds
    from asymdiffrec.embeddings.planner.rehearsal import rehearse

    binds, problem = what_binds(solution), solution.problem
    ranks = sorted({binds["rank"], binds["fullest_rank"]})
    cluster = problem.cluster
    with console.status("rehearsing"):
        rehearse(problem.model, solution.plan, problem.sharder, cluster.ranks, cluster.per_node, ranks)
    return f"rehearsed: TorchRec shards rank {' and '.join(map(str, ranks))} as planned"


def _cautions(job: Job, solution: Solution) -> list[str]:
    """Where the plan is not what training would do, or may be wrong."""
    from asymdiffrec.embeddings.planner.step_time import doubts

    ranks, found = solution.problem.cluster.ranks, []
    if job.data.lanes % ranks:
        found.append(f"to train on {ranks} ranks, data.lanes must be a multiple of them; it is {job.data.lanes}")
    if left := job.train.batch_size - solution.step.batch_size:
        found.append(f"train.batch_size is no multiple of {ranks} ranks: {left} samples fewer are planned with")
    return found + doubts(solution.problem.cluster)


def _refuse(document: dict[str, Any], advice: list[dict[str, Any]], as_json: bool) -> NoReturn:
    """The tables do not fit: exit status 2."""
    document["advice"] = advice
    if as_json:
        print_json(document)
        raise InputError(document["why"])
    show_unfit(document)
    raise typer.Exit(2)
