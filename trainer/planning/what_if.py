"""Plan a job for clusters that need not be available: for one cluster, for several, or for the smallest that fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import cast

import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.recommender import Recommender
from asymdiffrec.embeddings.planner.devices import Cluster, Device
from asymdiffrec.embeddings.planner.plan import DoesNotFitError, Solution, solve
from asymdiffrec.embeddings.tables import FieldTables
from asymdiffrec.trainer.job import Job, apply_override, validate
from asymdiffrec.trainer.train_state import build_recommender, planning_problem

DEFAULT_GPUS_PER_NODE = 8
MAX_GPUS = 4096
"""Maximum number of GPUs of a cluster."""


def plan(job: Job, statistics: Statistics | None, cluster: Cluster, like: Solution | None = None) -> Solution:
    """Return the plan of a job's tables on a cluster.

    `like` is the plan of a job with the same dense part, see `same_dense`; its dense work is used again. Raises
    DoesNotFitError if the tables do not fit, and InputError if a setting of the job is wrong.
    """
    if job.train.batch_size < cluster.world_size:
        raise InputError(
            f"train.batch_size: {job.train.batch_size} samples are too few for {cluster.world_size} ranks; "
            "each rank needs at least one"
        )
    schema = job.to_schema(statistics)
    if like is None:
        return solve(planning_problem(job, schema, build_recommender(job, schema, torch.device("meta")), cluster))
    model = Recommender(FieldTables(schema, job.tables), cast(Recommender, like.problem.model).diffusion)
    return solve(replace(like.problem, model=model, schema=schema, config=job.tables, cluster=cluster))


def smallest(job: Job, statistics: Statistics | None, device: Device, gpus_per_node: int) -> Solution:
    """Return the plan for the smallest cluster of a device that the tables fit on.

    On one host the number of GPUs is a power of two or `gpus_per_node`. With several hosts, all GPUs of each host are
    used. The search assumes that tables that fit on a cluster also fit on every larger cluster. Raises DoesNotFitError
    if the tables do not fit on the largest cluster that is tried.
    """

    def plan_for(gpus: int) -> Solution:
        return plan(job, statistics, cluster_of(device, gpus, gpus_per_node))

    too_small, large_enough = 0, 1
    while True:
        try:
            best = plan_for(large_enough)
            break
        except DoesNotFitError:
            if large_enough >= min(MAX_GPUS, job.train.batch_size):
                raise
            too_small = large_enough
            is_one_host = large_enough < gpus_per_node
            large_enough = min(2 * large_enough, gpus_per_node) if is_one_host else 2 * large_enough
    while large_enough - too_small > gpus_per_node:
        middle = (too_small + large_enough) // 2 // gpus_per_node * gpus_per_node
        try:
            best, large_enough = plan_for(middle), middle
        except DoesNotFitError:
            too_small = middle
    return best


def cluster_of(device: Device, gpus: int, gpus_per_node: int) -> Cluster:
    """Return a cluster of hosts with `gpus_per_node` GPUs each, or of one host with fewer GPUs.

    Raises InputError if the GPUs do not fill the hosts, or if `gpus` is more than MAX_GPUS.
    """
    if gpus > MAX_GPUS:
        raise InputError(f"{gpus:,} GPUs: at most {MAX_GPUS:,} are allowed")
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise InputError(
            f"{gpus} GPUs do not fill hosts with {gpus_per_node} GPUs each; use a multiple of {gpus_per_node}, or set "
            "--gpus-per-node"
        )
    return Cluster(device, max(1, gpus // gpus_per_node), min(gpus, gpus_per_node))


def sweep(
    job: Job, statistics: Statistics | None, devices: Sequence[Device], sizes: Sequence[int], gpus_per_node: int
) -> Iterator[tuple[Device, int, Solution | None, str]]:
    """Yield (device, GPUs, plan, reason) for each device and each number of GPUs.

    If the cluster has a plan, `reason` is empty. Otherwise the plan is None and `reason` says why.
    """
    for device, gpus in product(devices, sizes):
        try:
            yield device, gpus, plan(job, statistics, cluster_of(device, gpus, gpus_per_node)), ""
        except InputError as error:
            yield device, gpus, None, str(error)


def with_overrides(job: Job, overrides: Sequence[str]) -> Job:
    """Return the job with `PATH=VALUE` overrides applied."""
    document = job.model_dump(mode="json")
    for override in overrides:
        apply_override(document, override)
    return validate(Job, document, "the changed job")


def same_dense(job: Job, other: Job) -> bool:
    """Return whether two jobs have the same dense part: they differ only in `tables`, with equal embedding_dim."""
    tables = other.tables
    return job.model_copy(update={"tables": tables}) == other and job.tables.embedding_dim == tables.embedding_dim


def num_embeddings_from_data(job: Job, statistics: Statistics, collisions: float) -> tuple[Job, dict[str, int]]:
    """Return the job with num_embeddings of hashed tables set so that a share `collisions` of the ids collides.

    Return these num_embeddings by table name too. If n ids are hashed to R rows, an id is alone in its row with
    probability (1 - 1/R)^(n-1), about exp(-n / R). For a table, n is the largest cardinality of its fields: fields that
    share a table mostly have the same ids. Raises InputError if `collisions` is not between 0 and 1.
    """
    if not 0 < collisions < 1:
        raise InputError(
            f"--num-embeddings-from-data {collisions:g}: expected a share of ids between 0 and 1, such as 0.05"
        )
    sizes: dict[str, int] = {}
    overrides = []
    for table in job.to_schema().tables.values():
        cardinalities = [statistics.cardinalities[name] for name in table.fields if name in statistics.cardinalities]
        if table.hash and cardinalities:
            sizes[table.name] = max(2, math.ceil(-max(cardinalities) / math.log1p(-collisions)))
            overrides += [f"fields.{name}.num_embeddings={sizes[table.name]}" for name in table.fields]
    return with_overrides(job, overrides), sizes
