"""Find changes to a job that improve its plan. Each change is tried by planning the changed job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import Table
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.planner.devices import Cluster
from asymdiffrec.embeddings.planner.plan import Solution
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.planning.what_if import plan, same_dense, with_overrides

MAX_ADVICE_SECONDS = 20.0
"""Time after which no more changes are tried."""
MIN_GAIN = 0.01
"""Smallest relative gain of a change that is shown."""
MEMORY_WEIGHT = 0.1
"""Weight of saved memory relative to more samples per second, when changes are sorted."""
MAX_COSTLY_TABLES = 2
"""Number of the most expensive tables for which a smaller embedding_dim is tried."""


@dataclass(frozen=True)
class Change:
    """A change to a job as `--set` overrides, and the plan of the changed job."""

    description: str
    overrides: tuple[str, ...]
    solution: Solution


def advice(
    job: Job,
    statistics: Statistics | None,
    cluster: Cluster,
    solution: Solution | None,
    report: Callable[[str], None] = lambda description: None,
) -> list[Change]:
    """Return changes that raise the samples per second, save memory, or make the tables fit.

    `solution` is the plan of the job, or None if the tables do not fit. With a plan, the result has the changes with a
    gain above MIN_GAIN, the best first. Without a plan, it has the changes that make the tables fit, the least
    intrusive first. The effect of a change is computed from the plan of the changed job. `report` is called with the
    description of each change before it is tried.
    """
    changes = []
    end = time.monotonic() + MAX_ADVICE_SECONDS
    for description, overrides in _candidates(job, cluster, solution):
        if time.monotonic() > end:
            break
        report(description)
        try:
            changed = with_overrides(job, overrides)
            like = solution if same_dense(job, changed) else None
            outcome = plan(changed, statistics, cluster, like=like)
        except InputError:
            continue  # the changed job does not fit either, or is not allowed
        changes.append(Change(description, tuple(overrides), outcome))
    if solution is None:
        return changes
    before = solution

    def gain(change: Change) -> float:
        rate = change.solution.step.samples_per_second / before.step.samples_per_second
        memory = before.memory.device.max() / max(change.solution.memory.device.max(), 1.0)
        return max(math.log(rate), MEMORY_WEIGHT * math.log(memory))

    return sorted((change for change in changes if gain(change) > MIN_GAIN), key=lambda change: -gain(change))


def _candidates(job: Job, cluster: Cluster, solution: Solution | None) -> Iterator[tuple[str, list[str]]]:
    """Yield descriptions and overrides of changes to try, the least intrusive first."""
    tables = job.tables
    if tables.optimizer.name in ("adam", "adagrad"):
        rate = tables.optimizer.learning_rate
        yield (
            f"row-wise Adagrad instead of {tables.optimizer.name}",
            [f"tables.optimizer={{name: rowwise_adagrad, learning_rate: {rate}}}"],
        )
    if tables.dtype == "fp32":
        yield "fp16 tables", ["tables.dtype=fp16"]
    if tables.communication == "fp32" and cluster.world_size > 1:
        yield "embeddings sent in fp16", ["tables.communication=fp16"]
    if cluster.device.kind == "cuda" and "fused_uvm_caching" not in tables.kernels:
        yield "rarely used tables in host memory (UVM caching)", ["tables.kernels=[fused, fused_uvm_caching]"]
    yield "a batch twice as large", [f"train.batch_size={2 * job.train.batch_size}"]
    for table in _costly_tables(job, solution):
        dim = tables.width(table)
        if dim >= 8 and dim % 8 == 0:
            yield (
                f"embedding_dim {dim // 2} instead of {dim} for the table {table.name}",
                [f"fields.{field}.embedding_dim={dim // 2}" for field in table.fields],
            )
    if solution is None:
        halves = {name: tables.width(table) // 2 for table in job.to_schema().tables.values() for name in table.fields}
        if all(dim % 4 == 0 and dim for dim in halves.values()):
            yield (
                "half the embedding_dim for all tables, with row-wise Adagrad and fp16",
                [
                    f"tables.optimizer={{name: rowwise_adagrad, learning_rate: {tables.optimizer.learning_rate}}}",
                    "tables.dtype=fp16",
                    *(f"fields.{name}.embedding_dim={dim}" for name, dim in halves.items()),
                ],
            )


def _costly_tables(job: Job, solution: Solution | None) -> list[Table]:
    """Return the tables that take the most time on the slowest rank, or the most memory if `solution` is None."""

    def cost(table: Table) -> float:
        if solution is not None:
            return solution.milliseconds_on_slowest_rank[table.name]
        return table.num_embeddings * job.tables.width(table)

    return sorted(job.to_schema().tables.values(), key=cost, reverse=True)[:MAX_COSTLY_TABLES]


def change_document(change: Change, before: Solution | None) -> dict[str, Any]:
    """Return a change and its effect. If `before`, the plan without the change, is given, add ratios to it.

    `table_bytes` and `memory_ratio` are for the tables on the rank with the fullest memory.
    """
    table_bytes = change.solution.memory.device.max()
    effect = {
        "samples_per_second": change.solution.step.samples_per_second,
        "step_milliseconds": change.solution.step.milliseconds,
        "table_bytes": round(float(table_bytes)),
    }
    if before is not None:
        effect["rate_ratio"] = change.solution.step.samples_per_second / before.step.samples_per_second
        effect["memory_ratio"] = float(table_bytes / max(before.memory.device.max(), 1.0))
    return {"change": change.description, "overrides": list(change.overrides), **effect}
