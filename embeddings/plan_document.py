"""A plan as `plan.json` has it and as `plan --json` prints it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from asymdiffrec.embeddings.plan import Solution, describe_plan
from asymdiffrec.embeddings.planner.devices import GB
from asymdiffrec.embeddings.planner.loads import BYTES, TIMES, shard_bytes, shard_times


def plan_document(solution: Solution) -> dict[str, Any]:
    """`fits`, `world_size`, the `cluster`, the step's time in `step_milliseconds` and by its parts in `step`,
    `samples_per_second`, what each of `ranks` holds and does, what each of `tables` is and costs, and what `binds`.

    Times are milliseconds and sizes are bytes. A rank's `step_milliseconds` are the step's without the waiting for
    other ranks; its `memory_bytes` are all that a step needs there, with what is held in reserve.
    """
    problem, step, loads = solution.problem, solution.step, solution.loads
    cluster, device = problem.cluster, problem.cluster.device
    spared = (loads.milliseconds.max() - loads.milliseconds) / max(loads.milliseconds.max(), 1e-12)
    tables_part = step.lookups + step.communication + step.launches
    shared = problem.dense_bytes + problem.reserved_bytes
    return {
        "fits": True,
        "world_size": cluster.ranks,
        "local_world_size": cluster.per_node,
        "cluster": {"nodes": cluster.nodes, "gpus_per_node": cluster.per_node, "gpu": device.name},
        "batch_size": problem.samples * cluster.ranks,
        "planner": solution.planner,
        "planner_seconds": solution.seconds,
        "step_milliseconds": step.milliseconds,
        "samples_per_second": solution.samples_per_second,
        "imbalance": step.imbalance / step.milliseconds,
        "step": asdict(step),
        "device_bytes": round(device.memory * GB),
        "dense_bytes": problem.dense_bytes,
        "reserved_bytes": problem.reserved_bytes,
        "ranks": [
            {
                "rank": rank,
                "memory_bytes": round(float(loads.device_bytes[rank])) + shared,
                "step_milliseconds": step.milliseconds - float(spared[rank]) * tables_part,
                **{f"{name}_bytes": round(float(value)) for name, value in zip(BYTES, loads.bytes[rank], strict=True)},
                **{f"{name}_ms": float(value) for name, value in zip(TIMES, loads.times[rank], strict=True)},
            }
            for rank in range(cluster.ranks)
        ],
        "tables": [
            {**described, **costs}
            for described, costs in zip(describe_plan(solution), _table_costs(solution), strict=True)
        ],
        "binds": what_binds(solution),
    }


def _table_costs(solution: Solution) -> list[dict[str, Any]]:
    """Of each table: bytes of weights and state over all ranks, and milliseconds on the rank that it takes longest."""
    device = solution.problem.cluster.device.kind
    options = {option.name: option for option in solution.options}
    found = []
    for table in solution.problem.tables:
        option = options[table.name]
        size = sum(shard_bytes(option, shard, device)[: BYTES.index("activations")].sum() for shard in option.shards)
        host = sum(shard_bytes(option, shard, device)[BYTES.index("host")] for shard in option.shards)
        found.append(
            {
                "pooling_factors": list(table.pooling),
                "bytes": round(float(size)),
                "host_bytes": round(float(host)),
                "milliseconds": max(float(shard_times(shard).sum()) for shard in option.shards),
            }
        )
    return found


def what_binds(solution: Solution) -> dict[str, Any]:
    """The rank that makes the step as long as it is, its most costly table, and the resource that it needs most of;
    and the rank whose memory is fullest, and the share of it that is taken."""
    problem, loads, step = solution.problem, solution.loads, solution.step
    slowest = int(loads.milliseconds.argmax())
    costs = {
        option.name: sum(float(shard_times(shard).sum()) for shard in option.shards if shard.rank == slowest)
        for option in solution.options
    }
    table = max(costs, key=lambda name: costs[name])
    several = problem.cluster.nodes > 1
    parts = {
        "memory bandwidth of look-ups": step.lookups,
        "bandwidth between machines" if several else "bandwidth between GPUs": step.communication,
        "the dense part": step.dense,
        "summing gradients of the dense part": step.all_reduce,
        "launches": step.launches,
        "the fixed cost of a step": step.fixed,
    }
    held = loads.device_bytes + problem.dense_bytes + problem.reserved_bytes
    return {
        "rank": slowest,
        "table": table,
        "table_milliseconds": costs[table],
        "resource": max(parts, key=lambda name: parts[name]),
        "fullest_rank": int(np.argmax(held)),
        "memory_share": float(held.max() / (problem.cluster.device.memory * GB)),
    }
