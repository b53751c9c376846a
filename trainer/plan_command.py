"""`asymdiffrec plan`: what the user asks, and how it is answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asymdiffrec.trainer.shell import AsJson, console, print_json

if TYPE_CHECKING:
    from asymdiffrec.datasets.schema import Learned
    from asymdiffrec.embeddings.plan import Solution
    from asymdiffrec.embeddings.planner.devices import Device
    from asymdiffrec.trainer.job import Job

DEFAULT_GPU = "h100"


def plan(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="job file; its data need not be there", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="override one value of the job file; repeatable"),
    ] = None,
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
    from asymdiffrec.datasets.errors import InputError
    from asymdiffrec.embeddings.plan import DoesNotFitError
    from asymdiffrec.embeddings.planner.devices import device_of
    from asymdiffrec.trainer import planning
    from asymdiffrec.trainer.job import read_job

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
    config = read_job(job, list(settings or []))
    names = (gpu or config.cluster.device or DEFAULT_GPU).split(",")
    try:
        devices = [device_of(name.strip()) for name in names]
    except ValueError as error:
        raise InputError(f"--gpu {error}") from error
    learned, notes = _learned(config)
    if rows_from_data is not None:
        if learned is None:
            raise InputError("--rows-from-data: there is no schema.yaml beside the job's data yet; prepare them first")
        config, rows = planning.rows_from_data(config, learned, rows_from_data)
        counts = ", ".join(f"{table} {count:,}" for table, count in rows.items())
        notes.append(f"rows from the data, for {rows_from_data:.1%} of ids that share one: {counts}")
    per_node = gpus_per_node or planning.PER_NODE
    if sweep is not None:
        _sweep(config, learned, sweep, devices, per_node, planner, as_json)
        return
    (device, *others) = devices
    if others:
        raise InputError(f"--gpu {gpu}: several GPUs are compared with --sweep gpus=8,16")
    with console.status("planning") as status:
        try:
            if nodes is None and gpus_per_node is None:
                solution = planning.smallest(config, learned, device, per_node, planner)
                notes.append("the smallest cluster that fits; --nodes and --gpus-per-node name another size")
            else:
                cluster = planning.cluster_of(device, (nodes or 1) * per_node, per_node)
                solution = planning.plan(config, learned, cluster, planner)
        except DoesNotFitError as error:
            size = (nodes or 1) * per_node if nodes or gpus_per_node else planning.LARGEST
            cluster = planning.cluster_of(device, size, per_node)
            changes = planning.advice(config, learned, cluster, None, status.update) if advise else []
            document = planning.explained(error, changes, cluster)
            status.stop()
            if as_json:
                print_json(document)
                raise InputError(str(error)) from error
            from asymdiffrec.trainer.plan_shown import show_unfit

            show_unfit(document)
            raise typer.Exit(2) from error
        changes = planning.advice(config, learned, solution.problem.cluster, solution, status.update) if advise else []
        if rehearse:
            status.update("rehearsing")
            notes.append(_rehearsed(solution))
    _answer(config, solution, changes, notes, page, as_json)


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


def _learned(job: Job) -> tuple[Learned | None, list[str]]:
    """What was learned of the data, where they are prepared, and what is to be said where they are not."""
    from asymdiffrec.datasets.locations import exists
    from asymdiffrec.trainer.job import read_learned

    if exists(job.location("schema.yaml")):
        return read_learned(job), []
    return None, ["no data beside the job: ids are taken to come once a sample, or expected_length times in a list"]


def _rehearsed(solution: Solution) -> str:
    """What is said of the ranks that were sharded on meta tensors and hold what the plan says."""
    from asymdiffrec.embeddings.plan_document import what_binds
    from asymdiffrec.embeddings.planner.rehearsal import rehearse

    binds, problem = what_binds(solution), solution.problem
    ranks = sorted({binds["rank"], binds["fullest_rank"]})
    cluster = problem.cluster
    rehearse(problem.model, solution.plan, problem.sharder, cluster.ranks, cluster.per_node, ranks)
    return f"rehearsed: TorchRec shards rank {' and '.join(map(str, ranks))} as planned"


def _answer(
    job: Job, solution: Solution, changes: list[Any], notes: list[str], page: Path | None, as_json: bool
) -> None:
    from asymdiffrec.embeddings.plan_document import plan_document
    from asymdiffrec.embeddings.planner.step import doubts
    from asymdiffrec.trainer.plan_shown import show_plan, write_page
    from asymdiffrec.trainer.planning import describe_change

    document = plan_document(solution)
    document["advice"] = [describe_change(change, solution) for change in changes]
    ranks = solution.problem.cluster.ranks
    if job.data.lanes % ranks:
        notes.append(f"to train on {ranks} ranks, data.lanes must be a multiple of them; it is {job.data.lanes}")
    if left := job.train.batch_size - solution.step.batch_size:
        notes.append(f"train.batch_size is no multiple of {ranks} ranks: {left} samples fewer are planned with")
    notes += doubts(solution.problem.cluster)
    document["notes"] = notes
    if page is not None:
        write_page(document, job.name, page, notes)
        console.print(f"Page: {page}", soft_wrap=True)
    if as_json:
        print_json(document)
    else:
        show_plan(document, notes)


def _sweep(
    job: Job,
    learned: Learned | None,
    asked: str,
    devices: list[Device],
    per_node: int,
    planner: str,
    as_json: bool,
) -> None:
    from asymdiffrec.datasets.errors import InputError
    from asymdiffrec.embeddings.planner.step import doubts
    from asymdiffrec.trainer import planning
    from asymdiffrec.trainer.plan_shown import show_sweep

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
        for device, ranks, solution, why in planning.sweep(job, learned, devices, sizes, per_node, planner):
            row = {"gpu": device.name, "gpus": ranks, "fits": solution is not None}
            rows.append(row | (_figures(solution) if solution else {"why": why}))
            notes |= dict.fromkeys(doubts(solution.problem.cluster) if solution else ())
            status.update(f"planned {len(rows)} of {len(devices) * len(sizes)}")
    if as_json:
        print_json({"clusters": rows, "notes": list(notes)})
    else:
        show_sweep(rows, list(notes))


def _figures(solution: Solution) -> dict[str, Any]:
    from asymdiffrec.embeddings.plan_document import what_binds

    rate = solution.step.samples_per_second
    return {
        "step_milliseconds": solution.step.milliseconds,
        "samples_per_second": rate,
        "gpu_hours_per_billion": solution.problem.cluster.ranks * 1e9 / rate / 3600,
        "memory_share": what_binds(solution)["memory_share"],
    }
