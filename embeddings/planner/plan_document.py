"""A plan as a JSON document: `plan --json` prints it, a run writes it to `plan.json`, and `train --plan` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torchrec.distributed.planner.types import ShardingOption

from asymdiffrec.base import InputError
from asymdiffrec.embeddings.planner.devices import GB, Cluster, Device
from asymdiffrec.embeddings.planner.plan import Solution, solve
from asymdiffrec.embeddings.planner.plan_validation import InvalidPlanError
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable, table_configs
from asymdiffrec.embeddings.planner.problem import Problem
from asymdiffrec.embeddings.planner.rank_memory import shard_bytes
from asymdiffrec.embeddings.planner.search_planner import build_plan
from asymdiffrec.embeddings.planner.sharding_choices import ShardingChoice
from asymdiffrec.embeddings.planner.step_time import shard_milliseconds


class PlanFileTable(BaseModel):
    """The keys that `train --plan` reads for each table in a plan file; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    num_embeddings: int
    embedding_dim: int
    sharding: str
    kernel: str
    ranks: list[int]
    shard_embedding_dim: int = Field(gt=0)
    cache_load_factor: float | None


class PlanFile(BaseModel):
    """The keys that `train --plan` reads in a plan file; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    world_size: int
    local_world_size: int
    device: Device
    tables: list[PlanFileTable]


def plan_document(solution: Solution) -> dict[str, Any]:
    """Return the plan as a document that can be written as JSON.

    Times are in milliseconds and sizes in bytes. `step` has the parts of `step_milliseconds`. Each entry of `tables`
    has the sharding and the costs of a table. Each entry of `ranks` has the memory and the time of a rank:

    - `memory_bytes`: the memory that a step needs on the rank, including the reserve
    - `step_milliseconds`: the time of the step, without the time that the rank waits for slower ranks
    - other `..._milliseconds`: the time of the rank's tables at the device's nominal rates
    """
    problem, step, memory, times = solution.problem, solution.step, solution.memory, solution.times
    cluster, device = problem.cluster, problem.cluster.device
    shared = problem.dense_bytes + problem.reserved_bytes
    working = step.milliseconds - _waiting(solution)
    return {
        "fits": True,
        "world_size": cluster.world_size,
        "local_world_size": cluster.local_world_size,
        "cluster": _cluster_document(cluster),
        "batch_size": step.batch_size,
        "planner": solution.planner,
        "planner_seconds": solution.seconds,
        "step_milliseconds": step.milliseconds,
        "samples_per_second": step.samples_per_second,
        "imbalance": step.imbalance,
        "step": asdict(step),
        "device": device.model_dump(),
        "device_bytes": round(device.memory * GB),
        "dense_bytes": problem.dense_bytes,
        "reserved_bytes": problem.reserved_bytes,
        "ranks": [
            {
                "rank": rank,
                "memory_bytes": round(float(memory.device[rank])) + shared,
                "step_milliseconds": float(working[rank]),
                **{f"{name}_bytes": round(float(values[rank])) for name, values in vars(memory).items()},
                **{f"{name}_milliseconds": float(values[rank]) for name, values in vars(times).items()},
            }
            for rank in range(cluster.world_size)
        ],
        "tables": [entry | costs for entry, costs in zip(table_entries(solution), _table_costs(solution), strict=True)],
        "bottleneck": bottleneck(solution),
    }


def unfit_document(cluster: Cluster, why: str) -> dict[str, Any]:
    """Return the document for tables that do not fit on a cluster. `why` is one line with the reason."""
    return {"fits": False, "world_size": cluster.world_size, "cluster": _cluster_document(cluster), "why": why}


def _cluster_document(cluster: Cluster) -> dict[str, Any]:
    return {"nodes": cluster.nodes, "gpus_per_node": cluster.local_world_size, "gpu": cluster.device.name}


def table_entries(solution: Solution) -> list[dict[str, Any]]:
    """Return the size and the sharding of each table; its `ranks` are in the order of its shards."""
    tables = table_configs(solution.problem.model)
    options = {option.name: option for option in solution.options}
    return [_table_entry(table.num_embeddings, table.embedding_dim, options[name]) for name, table in tables.items()]


def _table_entry(num_embeddings: int, embedding_dim: int, option: ShardingOption) -> dict[str, Any]:
    return {
        "name": option.name,
        "num_embeddings": num_embeddings,
        "embedding_dim": embedding_dim,
        "dtype": {2: "fp16", 4: "fp32"}[option.tensor.element_size()],
        "sharding": option.sharding_type,
        "kernel": option.compute_kernel,
        "ranks": [shard.rank for shard in option.shards],
        "shard_embedding_dim": max(shard.size[1] for shard in option.shards),
        "cache_load_factor": option.cache_params.load_factor if option.cache_params else None,
    }


def _waiting(solution: Solution) -> np.ndarray:
    """Return the milliseconds that each rank waits for the slowest rank, summed over the phases of a step, [ranks]."""
    step, times = solution.step, solution.times
    phases = (times.forward, times.backward, times.forward_communication, times.backward_communication)
    slack = sum((phase.max() - phase for phase in phases), start=np.zeros_like(times.forward))
    longest = sum(float(phase.max()) for phase in phases)
    return slack * ((step.forward + step.backward + step.communication) / longest if longest else 0.0)


def _table_costs(solution: Solution) -> list[dict[str, Any]]:
    """Return the costs of each table: its bytes on all ranks, and the milliseconds on its slowest rank."""
    device = solution.problem.cluster.device.kind
    options = {option.name: option for option in solution.options}
    costs = []
    for table in solution.problem.tables:
        sizes = [shard_bytes(options[table.name], shard, device) for shard in options[table.name].shards]
        costs.append(
            {
                "pooling_factors": list(table.pooling_factors),
                "bytes": round(sum(weights + state for weights, state, _, _ in sizes)),
                "host_bytes": round(sum(host for *_, host in sizes)),
                "milliseconds": max(shard_milliseconds(options[table.name]).values()),
            }
        )
    return costs


def bottleneck(solution: Solution) -> dict[str, Any]:
    """Return the slowest rank, its most expensive table and the resource that takes most of the step.

    Also return the rank with the fullest memory, and the used share of its memory.
    """
    problem, step = solution.problem, solution.step
    costs = solution.milliseconds_on_slowest_rank
    table = max(costs, key=lambda name: costs[name])
    network = "bandwidth between hosts" if problem.cluster.nodes > 1 else "bandwidth between GPUs"
    parts = {
        "memory bandwidth for look-ups": step.forward + step.backward,
        network: step.communication,
        "the dense part": step.dense,
        "the all-reduce of dense gradients": step.all_reduce,
        "the distribution of ids": step.input_distribution,
        "the fixed time of a step": step.overhead,
    }
    used = solution.memory.device + problem.dense_bytes + problem.reserved_bytes
    return {
        "rank": solution.slowest_rank,
        "table": table,
        "table_milliseconds": costs[table],
        "resource": max(parts, key=lambda name: parts[name]),
        "fullest_rank": int(used.argmax()),
        "memory_share": float(used.max() / (problem.cluster.device.memory * GB)),
    }


def parse_plan(text: bytes) -> dict[str, Any]:
    """Return the document of a plan file.

    Raises InputError if the file was not written by `plan --json` for tables that fit.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from error
    _parse(document)
    plan: dict[str, Any] = document
    return plan


def _parse(document: Any) -> PlanFile:
    try:
        return PlanFile.model_validate(document)
    except ValidationError as error:
        (first, *_) = error.errors()
        path = ".".join(map(str, first["loc"]))
        reason = f"{path}: {first['msg'].lower()}" if path else first["msg"].lower()
        raise InputError(
            f"not a plan file written by `asymdiffrec plan JOB --json` for tables that fit ({reason})"
        ) from error


def world_size_mismatch(document: Mapping[str, Any], smallest: int, largest: int) -> str | None:
    """Return None if the plan is for `smallest` to `largest` ranks, else a line that says why not."""
    ranks = document["world_size"]
    if smallest <= ranks <= largest:
        return None
    available = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    return f"the plan is for {ranks} ranks; the training has {available}"


def solve_from_document(problem: Problem, document: Mapping[str, Any]) -> Solution:
    """Return the plan of a document, with estimates for the cluster of the problem.

    Raises InputError if the plan does not match the problem: it has other ranks, other tables, or a sharding that the
    job does not allow.
    """
    choices, ranks = _choices(problem, document)
    try:
        return solve(problem, partial(build_plan, choices=choices, ranks=ranks), "file")
    except InvalidPlanError as error:
        raise InputError(str(error)) from error


def _choices(problem: Problem, document: Mapping[str, Any]) -> tuple[list[ShardingChoice], list[list[int]]]:
    """Return the sharding choice and the ranks of each table of the problem, from the document's tables."""
    cluster, plan = problem.cluster, _parse(document)
    if reason := world_size_mismatch(document, cluster.world_size, cluster.world_size):
        raise InputError(reason)
    if plan.local_world_size != cluster.local_world_size:
        raise InputError(
            f"the plan is for {plan.local_world_size} ranks on each host; the training has {cluster.local_world_size}"
        )
    entries = {entry.name: entry for entry in plan.tables}
    names = [table.name for table in problem.tables]
    if difference := sorted(set(entries) ^ set(names)):
        owner = "plan" if difference[0] in entries else "job"
        raise InputError(f"the plan is for other tables: only the {owner} has the table {difference[0]}")
    choices = [_choice(problem, table, entries[table.name]) for table in problem.tables]
    return choices, [entries[name].ranks for name in names]


def _choice(problem: Problem, table: PlannedTable, entry: PlanFileTable) -> ShardingChoice:
    if (entry.num_embeddings, entry.embedding_dim) != (table.num_embeddings, table.embedding_dim):
        raise InputError(
            f"the plan is for other tables: {table.name} is {entry.num_embeddings} x {entry.embedding_dim} in the plan "
            f"and {table.num_embeddings} x {table.embedding_dim} in the job"
        )
    column_parts = table.embedding_dim // entry.shard_embedding_dim
    choice = ShardingChoice(entry.sharding, entry.kernel, column_parts, entry.cache_load_factor)
    ranks = [rank for rank in entry.ranks if rank in range(problem.cluster.world_size)]
    is_allowed = choice.is_allowed(replace(table, allow_narrow_shards=True), problem.topology)
    if not is_allowed or len(ranks) != choice.num_shards(problem.topology):
        raise InputError(
            f"the plan shards {table.name} {choice.sharding_type} ({choice.compute_kernel}) on ranks {entry.ranks}, "
            "which the job does not allow"
        )
    return choice
