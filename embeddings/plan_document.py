"""A plan as `plan.json` has it and as `plan --json` prints it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from torchrec.distributed.planner.types import ShardingOption

from asymdiffrec.embeddings.plan import Solution, describe_plan
from asymdiffrec.embeddings.planner.devices import GB
from asymdiffrec.embeddings.planner.memory import shard_bytes


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
        "cluster": {"nodes": cluster.nodes, "gpus_per_node": cluster.per_node, "gpu": device.name},
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


def _waiting(solution: Solution) -> np.ndarray:
    """Milliseconds of a step that each rank waits for others, [ranks]: what it takes less than the slowest, summed."""
    step, times = solution.step, solution.times
    phases = (times.forward, times.backward, times.forward_communication, times.backward_communication)
    slack = sum((phase.max() - phase for phase in phases), start=np.zeros_like(times.forward))
    longest = sum(float(phase.max()) for phase in phases)
    return slack * ((step.forward + step.backward + step.communication) / longest if longest else 0.0)


def shard_milliseconds(option: ShardingOption) -> dict[int, float]:
    """What a table's shards take on each rank that has one."""
    found: dict[int, float] = {}
    for shard in option.shards:
        assert shard.perf is not None
        assert shard.rank is not None
        found[shard.rank] = found.get(shard.rank, 0.0) + shard.perf.total
    return found


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
    slowest = int(solution.times.milliseconds.argmax())
    costs = {option.name: shard_milliseconds(option).get(slowest, 0.0) for option in solution.options}
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
        "rank": slowest,
        "table": table,
        "table_milliseconds": costs[table],
        "resource": max(parts, key=lambda name: parts[name]),
        "fullest_rank": int(held.argmax()),
        "memory_share": float(held.max() / (problem.cluster.device.memory * GB)),
    }
