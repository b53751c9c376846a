"""Changes to a job that would help its plan, each of them tried."""

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
from asymdiffrec.trainer.planning.what_if import changed, plan, same_dense

PATIENCE = 20.0
"""Seconds after which no more changes are tried"""


@dataclass(frozen=True)
class Change:
    """A change to a job, as `--set` takes it, and the plan with it."""

    what: str
    settings: tuple[str, ...]
    solution: Solution


def advice(
    job: Job,
    statistics: Statistics | None,
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
            other = changed(job, settings)
            like = solution if same_dense(job, other) else None
            outcome = plan(other, statistics, cluster, like=like)
        except InputError:
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
    for table in _costly(job, solution):
        dim = table.embedding_dim or tables.embedding_dim
        if dim >= 8 and dim % 8 == 0:
            yield (
                f"{dim // 2} columns in place of {dim} for the table {table.name}",
                [f"fields.{field}.embedding_dim={dim // 2}" for field in table.fields],
            )
    if solution is None:
        smaller = {
            name: (table.embedding_dim or tables.embedding_dim) // 2
            for table in job.to_schema().tables.values()
            for name in table.fields
        }
        if all(dim % 4 == 0 and dim for dim in smaller.values()):
            yield (
                "half of the columns for all tables, with row-wise Adagrad and fp16",
                [
                    f"tables.optimizer={{name: rowwise_adagrad, learning_rate: {tables.optimizer.learning_rate}}}",
                    "tables.dtype=fp16",
                    *(f"fields.{name}.embedding_dim={dim}" for name, dim in smaller.items()),
                ],
            )


def _costly(job: Job, solution: Solution | None, most: int = 2) -> list[Table]:
    """The tables that take the most of the slowest rank's time, or the most memory where there is no plan."""

    def cost(table: Table) -> float:
        if solution is not None:
            return solution.milliseconds_on_slowest[table.name]
        return table.num_embeddings * (table.embedding_dim or job.tables.embedding_dim)

    return sorted(job.to_schema().tables.values(), key=cost, reverse=True)[:most]


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
