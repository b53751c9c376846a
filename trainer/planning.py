"""Plans of a job for clusters that need not be here: one, several side by side, the smallest, and what would help."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.schema import Learned
from asymdiffrec.embeddings.plan import DoesNotFitError, Solution, solve
from asymdiffrec.embeddings.planner.devices import Cluster, Device
from asymdiffrec.trainer.build import problem, recommender
from asymdiffrec.trainer.job import Job, override, validate

PER_NODE = 8
"""GPUs of a machine, where nothing else is said"""
LARGEST = 4096
"""GPUs of the largest cluster that is looked at"""
PATIENCE = 20.0
"""Seconds after which no more changes are tried"""


@dataclass(frozen=True)
class Change:
    """A change to a job, as `--set` takes it, and the plan with it."""

    what: str
    settings: tuple[str, ...]
    solution: Solution


def plan(job: Job, learned: Learned | None, cluster: Cluster, planner: str = "fast") -> Solution:
    """The plan of a job's tables. Raises DoesNotFitError, or InputError where the job is wrong in another way."""
    if job.train.batch_size < cluster.ranks:
        raise InputError(f"train.batch_size: {job.train.batch_size} samples are too few for {cluster.ranks} ranks")
    try:
        schema = job.to_schema(learned)
        return solve(problem(job, schema, recommender(job, schema, torch.device("cpu")), cluster), planner)
    except DoesNotFitError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error


def smallest(job: Job, learned: Learned | None, device: Device, per_node: int, planner: str = "fast") -> Solution:
    """The plan for the smallest cluster of the device that the tables fit: a power of two of GPUs of one machine, or
    whole machines, in as much as a larger cluster fits what a smaller one does.

    Raises DoesNotFitError where LARGEST are too few.
    """

    def planned(ranks: int) -> Solution:
        return plan(job, learned, cluster_of(device, ranks, per_node), planner)

    small, large = 0, 1
    while True:
        try:
            found = planned(large)
            break
        except DoesNotFitError:
            if large >= min(LARGEST, job.train.batch_size):
                raise
            # From a machine on, in whole ones
            small, large = large, min(2 * large, per_node) if large < per_node else 2 * large
    while large - small > per_node:
        middle = (small + large) // 2 // per_node * per_node
        try:
            found, large = planned(middle), middle
        except DoesNotFitError:
            small = middle
    return found


def cluster_of(device: Device, ranks: int, per_node: int) -> Cluster:
    """So many ranks on machines of `per_node`, or on a part of one.

    InputError where they do not fill machines, or are more than LARGEST.
    """
    if ranks > LARGEST:
        raise InputError(f"{ranks:,} GPUs: at most {LARGEST:,} are planned for")
    if ranks > per_node and ranks % per_node:
        raise InputError(f"{ranks} GPUs do not fill machines of {per_node}; give a multiple, or --gpus-per-node")
    return Cluster(device, max(1, ranks // per_node), min(ranks, per_node))


def sweep(
    job: Job, learned: Learned | None, devices: Sequence[Device], sizes: Sequence[int], per_node: int, planner: str
) -> Iterator[tuple[Device, int, Solution | None, str]]:
    """The plan for each number of each device, or None and why there is none."""
    for device, ranks in product(devices, sizes):
        try:
            yield device, ranks, plan(job, learned, cluster_of(device, ranks, per_node), planner), ""
        except (DoesNotFitError, InputError) as error:
            yield device, ranks, None, str(error)


def changed(job: Job, settings: Sequence[str]) -> Job:
    """The job with `PATH=VALUE` settings laid over it."""
    document = job.model_dump(mode="json")
    for setting in settings:
        override(document, setting)
    return validate(Job, document, "the changed job")


def advice(
    job: Job,
    learned: Learned | None,
    cluster: Cluster,
    solution: Solution | None,
    tell: Callable[[str], None] = lambda what: None,
) -> list[Change]:
    """Changes that make the step shorter for each sample or the memory less, or that make the tables fit at all.

    Where the tables fit, those that help by a percent or more, the best first; elsewhere those that make them fit, the
    least first. Each is tried: its effect is what the plan of the changed job says.
    """
    found = []
    end = time.monotonic() + PATIENCE
    for what, settings in _candidates(job, cluster, solution):
        if time.monotonic() > end:
            break
        tell(what)
        try:
            outcome = plan(changed(job, settings), learned, cluster)
        except (DoesNotFitError, InputError):
            continue
        found.append(Change(what, tuple(settings), outcome))
    if solution is None:
        return found
    before = solution

    def gain(change: Change) -> float:
        rate = change.solution.step.samples_per_second / before.step.samples_per_second
        memory = before.memory.device.max() / max(change.solution.memory.device.max(), 1.0)
        return max(math.log(rate), 0.1 * math.log(memory))

    return sorted((change for change in found if gain(change) > 0.01), key=lambda change: -gain(change))


def _candidates(job: Job, cluster: Cluster, solution: Solution | None) -> Iterator[tuple[str, list[str]]]:
    """What could be changed, the least intrusive first."""
    tables = job.tables
    if tables.optimizer.name in ("adam", "adagrad"):
        rate = tables.optimizer.learning_rate
        yield (
            f"row-wise Adagrad in place of {tables.optimizer.name}",
            [f"tables.optimizer={{name: rowwise_adagrad, learning_rate: {rate}}}"],
        )
    if tables.dtype == "fp32":
        yield "fp16 tables", ["tables.dtype=fp16"]
    if tables.communication == "fp32" and cluster.ranks > 1:
        yield "embeddings that travel in fp16", ["tables.communication=fp16"]
    if cluster.device.kind == "cuda" and "fused_uvm_caching" not in tables.kernels:
        yield "cold tables in the machine's memory (UVM caching)", ["tables.kernels=[fused, fused_uvm_caching]"]
    yield "a batch twice as large", [f"train.batch_size={2 * job.train.batch_size}"]
    for table, fields in _costly(job, solution):
        dim = job.fields[fields[0]].embedding_dim or tables.embedding_dim
        if dim >= 8 and dim % 8 == 0:
            yield (
                f"{dim // 2} columns in place of {dim} for the table {table}",
                [f"fields.{field}.embedding_dim={dim // 2}" for field in fields],
            )
    if solution is None:
        fields = [name for table in _fields_of_tables(job).values() for name in table]
        smaller = {name: (job.fields[name].embedding_dim or tables.embedding_dim) // 2 for name in fields}
        if all(dim % 4 == 0 and dim for dim in smaller.values()):
            yield (
                "half of the columns for all tables, with row-wise Adagrad and fp16",
                [
                    f"tables.optimizer={{name: rowwise_adagrad, learning_rate: {tables.optimizer.learning_rate}}}",
                    "tables.dtype=fp16",
                    *(f"fields.{name}.embedding_dim={dim}" for name, dim in smaller.items()),
                ],
            )


def _fields_of_tables(job: Job) -> dict[str, list[str]]:
    schema = job.to_schema()
    found: dict[str, list[str]] = {}
    for name in schema.hashed:
        found.setdefault(schema.table(name), []).append(name)
    return found


def _costly(job: Job, solution: Solution | None, most: int = 2) -> Iterator[tuple[str, list[str]]]:
    """The tables that take the most of the slowest rank's time, or the most memory where there is no plan."""
    fields = _fields_of_tables(job)
    if solution is None:
        schema = job.to_schema()

        def size(table: str) -> float:
            field = schema.hashed[fields[table][0]]
            return field.rows * (field.embedding_dim or job.tables.embedding_dim)

        order = sorted(fields, key=size, reverse=True)
    else:
        costs = solution.milliseconds_on_slowest
        order = sorted(fields, key=lambda table: costs[table], reverse=True)
    for table in order[:most]:
        yield table, fields[table]


def rows_from_data(job: Job, learned: Learned, collisions: float) -> tuple[Job, dict[str, int]]:
    """The job with each hashed table's rows chosen for a share of ids that share their row with another.

    n ids that are hashed to R rows: one of them is alone with probability (1 - 1/R)^(n-1), about exp(-n / R). The n of
    a table are the largest of its fields' cardinalities, which mostly have the same ids. Raises InputError for a share
    that is none.
    """
    if not 0 < collisions < 1:
        raise InputError(f"--rows-from-data {collisions:g}: expected a share between 0 and 1, such as 0.05")
    rows, settings = {}, []
    for table, fields in _fields_of_tables(job).items():
        hashed = [name for name in fields if getattr(job.fields[name], "hash", True)]
        known = [learned.cardinalities[name] for name in hashed if name in learned.cardinalities]
        if known:
            rows[table] = max(2, math.ceil(-max(known) / math.log1p(-collisions)))
            settings += [f"fields.{name}.rows={rows[table]}" for name in hashed]
    return changed(job, settings), rows


def explained(error: DoesNotFitError, changes: Sequence[Change], cluster: Cluster) -> Mapping[str, Any]:
    """What `plan --json` prints where the tables do not fit."""
    return {
        "fits": False,
        "world_size": cluster.ranks,
        "cluster": {"nodes": cluster.nodes, "gpus_per_node": cluster.per_node, "gpu": cluster.device.name},
        "why": str(error),
        "advice": [describe_change(change, None) for change in changes],
    }


def describe_change(change: Change, before: Solution | None) -> dict[str, Any]:
    """A change with its effect: of samples a second and of the fullest rank's memory, as a ratio to those before."""
    held = change.solution.memory.device.max()
    effect = {
        "samples_per_second": change.solution.step.samples_per_second,
        "step_milliseconds": change.solution.step.milliseconds,
        "table_bytes": round(float(held)),
    }
    if before is not None:
        effect["rate_ratio"] = change.solution.step.samples_per_second / before.step.samples_per_second
        effect["memory_ratio"] = float(held / max(before.memory.device.max(), 1.0))
    return {"change": change.what, "settings": list(change.settings), **effect}
