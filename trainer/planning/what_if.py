"""Plans of a job for clusters that need not be here: one, several side by side, and the smallest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import cast

import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.diffusion.model import Recommender
from asymdiffrec.embeddings.planner.devices import Cluster, Device
from asymdiffrec.embeddings.planner.plan import DoesNotFitError, Solution, solve
from asymdiffrec.embeddings.tables import FieldTables
from asymdiffrec.trainer.build import problem, recommender
from asymdiffrec.trainer.job import Job, apply_override, validate

PER_NODE = 8
"""GPUs of a machine, where nothing else is said"""
LARGEST = 4096
"""GPUs of the largest cluster that is looked at"""


def plan(
    job: Job, statistics: Statistics | None, cluster: Cluster, planner: str = "fast", like: Solution | None = None
) -> Solution:
    """The plan of a job's tables. `like` is that of a job with the `same_dense` part, which is not counted anew.

    Raises DoesNotFitError, which is an InputError, or another InputError where the job is wrong in another way.
    """
    if job.train.batch_size < cluster.ranks:
        raise InputError(f"train.batch_size: {job.train.batch_size} samples are too few for {cluster.ranks} ranks")
    schema = job.to_schema(statistics)
    if like is None:
        stated = problem(job, schema, recommender(job, schema, torch.device("meta")), cluster)
    else:
        model = Recommender(FieldTables(schema, job.tables), cast(Recommender, like.problem.model).diffusion)
        stated = replace(like.problem, model=model, schema=schema, config=job.tables, cluster=cluster)
    return solve(stated, planner)


def smallest(job: Job, statistics: Statistics | None, device: Device, per_node: int, planner: str = "fast") -> Solution:
    """The plan for the smallest cluster of the device that the tables fit: a power of two of GPUs of one machine, or
    whole machines, in as much as a larger cluster fits what a smaller one does.

    Raises DoesNotFitError where LARGEST are too few.
    """

    def planned(ranks: int) -> Solution:
        return plan(job, statistics, cluster_of(device, ranks, per_node), planner)

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
    job: Job,
    statistics: Statistics | None,
    devices: Sequence[Device],
    sizes: Sequence[int],
    per_node: int,
    planner: str,
) -> Iterator[tuple[Device, int, Solution | None, str]]:
    """The plan for each number of each device, or None and why there is none."""
    for device, ranks in product(devices, sizes):
        try:
            yield device, ranks, plan(job, statistics, cluster_of(device, ranks, per_node), planner), ""
        except InputError as error:
            yield device, ranks, None, str(error)


def changed(job: Job, settings: Sequence[str]) -> Job:
    """The job with `PATH=VALUE` settings laid over it."""
    document = job.model_dump(mode="json")
    for setting in settings:
        apply_override(document, setting)
    return validate(Job, document, "the changed job")


def same_dense(job: Job, other: Job) -> bool:
    """Whether the dense part of one is that of the other: they differ in their tables alone, and not in their width."""
    tables = other.tables
    return job.model_copy(update={"tables": tables}) == other and job.tables.embedding_dim == tables.embedding_dim


def rows_from_data(job: Job, statistics: Statistics, collisions: float) -> tuple[Job, dict[str, int]]:
    """The job with each hashed table's rows chosen for a share of ids that share their row with another.

    n ids that are hashed to R rows: one of them is alone with probability (1 - 1/R)^(n-1), about exp(-n / R). The n of
    a table are the largest of its fields' cardinalities, which mostly have the same ids. Raises InputError for a share
    that is none.
    """
    if not 0 < collisions < 1:
        raise InputError(f"--rows-from-data {collisions:g}: expected a share between 0 and 1, such as 0.05")
    rows, settings = {}, []
    for table in job.to_schema().tables.values():
        known = [statistics.cardinalities[name] for name in table.fields if name in statistics.cardinalities]
        if table.hash and known:
            rows[table.name] = max(2, math.ceil(-max(known) / math.log1p(-collisions)))
            settings += [f"fields.{name}.num_embeddings={rows[table.name]}" for name in table.fields]
    return changed(job, settings), rows
