"""A plan as `plan.json` has it and as `plan --json` prints it: written, and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from torchrec.distributed.planner.types import ShardingOption

from asymdiffrec.base import InputError
from asymdiffrec.embeddings.planner.devices import GB, Cluster
from asymdiffrec.embeddings.planner.plan import Problem, Solution, solve_by
from asymdiffrec.embeddings.planner.plan_check import InvalidPlanError
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable, table_configs
from asymdiffrec.embeddings.planner.rank_memory import shard_bytes
from asymdiffrec.embeddings.planner.search_planner import pinned
from asymdiffrec.embeddings.planner.sharding_options import Way
from asymdiffrec.embeddings.planner.step_time import shard_milliseconds

TABLE_KEYS = {"name", "rows", "dim", "sharding", "kernel", "ranks", "shard_columns", "cached"}
"""What a plan is read from, of each table"""


def plan_document(solution: Solution) -> dict[str, Any]:
    """`fits`, `world_size`, the `cluster`, the step's time in `step_milliseconds` and by its parts in `step`,
    `samples_per_second`, what each of `ranks` holds and does, what each of `tables` is and costs, and what `binds`.

    Times are milliseconds and sizes are bytes. A rank's `step_milliseconds` are the step's without its waiting for
    ranks whose tables take longer, its `..._ms` what its tables take at the device's nominal figures; its
    `memory_bytes` are all that a step needs there, with what is held in reserve.
    """
    problem, step, memory, times = solution.problem, solution.step, solution.memory, solution.times
    cluster, device = problem.cluster, problem.cluster.device
    shared = problem.dense_bytes + problem.reserved_bytes
    working = step.milliseconds - _waiting(solution)
    return {
        "fits": True,
        "world_size": cluster.ranks,
        "local_world_size": cluster.per_node,
        "cluster": _described_cluster(cluster),
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
                **{f"{name}_ms": float(values[rank]) for name, values in vars(times).items()},
            }
            for rank in range(cluster.ranks)
        ],
        "tables": [
            described | costs for described, costs in zip(describe_plan(solution), _table_costs(solution), strict=True)
        ],
        "binds": what_binds(solution),
    }


def unfit_document(cluster: Cluster, why: str) -> dict[str, Any]:
    """What there is to say where the tables have no place on a cluster."""
    return {"fits": False, "world_size": cluster.ranks, "cluster": _described_cluster(cluster), "why": why}


def _described_cluster(cluster: Cluster) -> dict[str, Any]:
    return {"nodes": cluster.nodes, "gpus_per_node": cluster.per_node, "gpu": cluster.device.name}


def describe_plan(solution: Solution) -> list[dict[str, Any]]:
    """What `plan.json` keeps of each table; `ranks` are those of its shards, in their order."""
    tables = table_configs(solution.problem.model)
    options = {option.name: option for option in solution.options}
    return [_described(table.num_embeddings, table.embedding_dim, options[name]) for name, table in tables.items()]


def _described(rows: int, dim: int, option: ShardingOption) -> dict[str, Any]:
    return {
        "name": option.name,
        "rows": rows,
        "dim": dim,
        "dtype": {2: "fp16", 4: "fp32"}[option.tensor.element_size()],
        "sharding": option.sharding_type,
        "kernel": option.compute_kernel,
        "ranks": [shard.rank for shard in option.shards],
        "shard_columns": max(shard.size[1] for shard in option.shards),
        "cached": option.cache_params.load_factor if option.cache_params else None,
    }


def _waiting(solution: Solution) -> np.ndarray:
    """Milliseconds of a step that each rank waits for others, [ranks]: what it takes less than the slowest, summed."""
    step, times = solution.step, solution.times
    phases = (times.forward, times.backward, times.forward_communication, times.backward_communication)
    slack = sum((phase.max() - phase for phase in phases), start=np.zeros_like(times.forward))
    longest = sum(float(phase.max()) for phase in phases)
    return slack * ((step.forward + step.backward + step.communication) / longest if longest else 0.0)


def _table_costs(solution: Solution) -> list[dict[str, Any]]:
    """Of each table: bytes of weights and state over all ranks, and milliseconds on the rank that it takes longest."""
    device = solution.problem.cluster.device.kind
    options = {option.name: option for option in solution.options}
    found = []
    for table in solution.problem.tables:
        sizes = [shard_bytes(options[table.name], shard, device) for shard in options[table.name].shards]
        found.append(
            {
                "pooling_factors": list(table.pooling),
                "bytes": round(sum(weights + state for weights, state, _, _ in sizes)),
                "host_bytes": round(sum(host for *_, host in sizes)),
                "milliseconds": max(shard_milliseconds(options[table.name]).values()),
            }
        )
    return found


def what_binds(solution: Solution) -> dict[str, Any]:
    """The rank that makes the step as long as it is, its most costly table, and the resource that it needs most of;
    and the rank whose memory is fullest, and the share of it that is taken."""
    problem, step = solution.problem, solution.step
    costs = solution.milliseconds_on_slowest
    table = max(costs, key=lambda name: costs[name])
    several = problem.cluster.nodes > 1
    parts = {
        "memory bandwidth for look-ups": step.forward + step.backward,
        "bandwidth between machines" if several else "bandwidth between GPUs": step.communication,
        "the dense part": step.dense,
        "the all-reduce of dense gradients": step.all_reduce,
        "the distribution of ids": step.input_distribution,
        "the fixed cost of a step": step.overhead,
    }
    held = solution.memory.device + problem.dense_bytes + problem.reserved_bytes
    return {
        "rank": solution.slowest,
        "table": table,
        "table_milliseconds": costs[table],
        "resource": max(parts, key=lambda name: parts[name]),
        "fullest_rank": int(held.argmax()),
        "memory_share": float(held.max() / (problem.cluster.device.memory * GB)),
    }


def parse_plan(text: bytes) -> dict[str, Any]:
    """The document in a `plan.json`. Raises InputError where there is none of a plan that fits."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"not JSON ({error})") from error
    tables = document.get("tables") if isinstance(document, dict) else None
    if not isinstance(tables, list) or not all(isinstance(one, dict) and one.keys() >= TABLE_KEYS for one in tables):
        raise InputError("not a plan, as `plan --json` prints one that fits")
    return document


def solve_as(problem: Problem, document: Mapping[str, Any]) -> Solution:
    """The plan that was written down in `document`, with the estimates of the problem's cluster.

    Raises InputError where it is none for this problem: for other ranks or tables, or against what the job says.
    """
    chosen, ranks = _read(problem, document)
    try:
        return solve_by(problem, "file", partial(pinned, chosen=chosen, ranks=ranks))
    except InvalidPlanError as error:
        raise InputError(str(error)) from error


def _read(problem: Problem, document: Mapping[str, Any]) -> tuple[list[Way], list[list[int]]]:
    """The way and the ranks of each table of the problem, from what `describe_plan` gave."""
    ranks = problem.cluster.ranks
    if document.get("world_size") != ranks:
        raise InputError(f"the plan is for {document.get('world_size')} ranks; there are {ranks}")
    if document.get("local_world_size", ranks) != problem.cluster.per_node:
        raise InputError(
            f"the plan is for machines of {document['local_world_size']} ranks; here are {problem.cluster.per_node}"
        )
    entries = {entry["name"]: entry for entry in document["tables"]}
    names = [table.name for table in problem.tables]
    if difference := sorted(set(entries) ^ set(names)):
        holder = "the plan" if difference[0] in entries else "the job"
        raise InputError(f"the plan is of other tables: {difference[0]} is in {holder} alone")
    ways = [_read_way(problem, table, entries[table.name]) for table in problem.tables]
    return ways, [entries[name]["ranks"] for name in names]


def _read_way(problem: Problem, table: PlannedTable, entry: Mapping[str, Any]) -> Way:
    if [entry["rows"], entry["dim"]] != [table.rows, table.dim]:
        raise InputError(
            f"the plan is of other tables: {table.name} is {entry['rows']} x {entry['dim']} there, and "
            f"{table.rows} x {table.dim} in the job"
        )
    way = Way(entry["sharding"], entry["kernel"], table.dim // entry["shard_columns"], entry["cached"])
    here = [rank for rank in entry["ranks"] if rank in range(problem.cluster.ranks)]
    if not way.is_open(replace(table, split=True), problem.topology) or len(here) != way.shards(problem.topology):
        raise InputError(f"the plan shards {table.name} {way.sharding} ({way.kernel}), which the job does not allow")
    return way
