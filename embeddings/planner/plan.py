"""The sharding plan: which rank holds which part of which table, how long a step takes, and whether it fits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from torch import nn
from torchrec.distributed.planner.types import ShardingOption, Topology
from torchrec.distributed.types import ShardingPlan

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.optimizers import check_device
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import GB, Cluster
from asymdiffrec.embeddings.planner.estimators import STATE_BYTES, state_elements
from asymdiffrec.embeddings.planner.plan_check import check_plan
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable, planned_tables, table_configs
from asymdiffrec.embeddings.planner.rank_memory import TableMemory, table_memory
from asymdiffrec.embeddings.planner.search import TooLargeError
from asymdiffrec.embeddings.planner.search_planner import plan_fast
from asymdiffrec.embeddings.planner.sharding_options import ways
from asymdiffrec.embeddings.planner.step_time import StepTime, TableTimes, shard_milliseconds, step_time, table_times
from asymdiffrec.embeddings.planner.torchrec_planner import plan_by_torchrec
from asymdiffrec.embeddings.sharder import TableSharder

RESERVED = 0.15
"""Share of a rank's memory that nothing is planned for: batches in flight, libraries, the allocator's loss."""

DENSE_COPIES = 4
"""What a dense parameter costs beside its optimizer's moments, in parameters: itself, its gradient, and buckets to
reduce gradients."""

Planner: TypeAlias = Callable[..., tuple[ShardingPlan, list[ShardingOption]]]

PLANNERS: Mapping[str, Planner] = {"fast": plan_fast, "torchrec": plan_by_torchrec}


class DoesNotFitError(InputError):
    """The tables have no place on the ranks, as the job allows them to be sharded."""


@dataclass(frozen=True)
class Problem:
    """All that a plan depends on. `model` holds a `FieldTables` that is not sharded; `batch_size` is of all ranks."""

    model: nn.Module
    schema: Schema
    config: TablesConfig
    cluster: Cluster
    batch_size: int
    dense: DenseWork

    @property
    def samples(self) -> int:
        """Of one rank"""
        return max(1, self.batch_size // self.cluster.ranks)

    @property
    def dense_bytes(self) -> int:
        """On every rank: parameters with all that is kept for each of them, and activations"""
        return 4 * (DENSE_COPIES + self.dense.moments) * self.dense.parameters + self.dense.activations

    @property
    def reserved_bytes(self) -> int:
        return round(RESERVED * self.cluster.device.memory * GB)

    @cached_property
    def topology(self) -> Topology:
        return self.cluster.topology(self.dense_bytes + self.reserved_bytes)

    @cached_property
    def sharder(self) -> TableSharder:
        return TableSharder(self.config, self.cluster.device.kind)

    @cached_property
    def tables(self) -> list[PlannedTable]:
        """Raises InputError where a sharding that the job fixes would leave ranks without rows."""
        kinds = self.kinds
        tables = planned_tables(self.model, self.schema, self.config, self.cluster.device.kind, self.batch_size, kinds)
        for table in tables:
            self._check_has_way(table, kinds)
        return tables

    @property
    def kinds(self) -> list[str]:
        """Sharding types that mean something on these ranks."""
        if self.cluster.ranks == 1:
            return ["table_wise"]
        several = self.cluster.nodes > 1
        useless = {"table_column_wise"} if several else {"table_column_wise", "grid_shard", "table_row_wise"}
        return [kind for kind in self.sharder.sharding_types(self.cluster.device.kind) if kind not in useless]

    def _check_has_way(self, table: PlannedTable, kinds: list[str]) -> None:
        if self._has_way(table):
            return
        if table.block > 1:
            whole = table.block * self.cluster.ranks
            raise InputError(
                f"tables.per_table.{table.name}: {table.rows} rows; with collision: managed on {self.cluster.ranks} "
                f"ranks a table needs a multiple of {whole}, such as {-(-table.rows // whole) * whole}"
            )
        asked = " or ".join(table.sharding) + (f" on {table.parts} ranks" if table.parts else "")
        free = [kind for kind in kinds if self._has_way(replace(table, sharding=[kind]))]
        raise InputError(
            f"tables.per_table.{table.name}: {asked} cannot divide {table.rows} rows of {table.dim} columns so that "
            f"each of {self.cluster.ranks} ranks has a part; use {', '.join(free) or 'another number of ranks'}"
        )

    def _has_way(self, table: PlannedTable) -> bool:
        return any(way.is_open(table, self.topology) for way in ways(table.kernels))


@dataclass(frozen=True)
class Solution:
    """A plan for a problem, with TorchRec's estimates of each of its shards."""

    problem: Problem
    plan: ShardingPlan
    options: list[ShardingOption]
    planner: str
    seconds: float

    @cached_property
    def memory(self) -> TableMemory:
        return table_memory(self.options, self.problem.topology)

    @cached_property
    def times(self) -> TableTimes:
        return table_times(self.options, self.problem.cluster.ranks)

    @cached_property
    def step(self) -> StepTime:
        problem = self.problem
        return step_time(self.times, problem.dense, problem.cluster, problem.samples * problem.cluster.ranks)

    @cached_property
    def slowest(self) -> int:
        """The rank whose tables take the longest."""
        return int(self.times.milliseconds.argmax())

    @cached_property
    def milliseconds_on_slowest(self) -> dict[str, float]:
        """What each table takes on the slowest rank."""
        return {option.name: shard_milliseconds(option).get(self.slowest, 0.0) for option in self.options}


def solve(problem: Problem, planner: str = "fast") -> Solution:
    """A plan by one of PLANNERS; needs no process group and no memory for the tables.

    InputError, in one line, where the device lacks the optimizer or a sharding that the job fixes would leave ranks
    without rows; DoesNotFitError where the tables do not fit.
    """
    return solve_by(problem, planner, PLANNERS[planner])


def solve_by(problem: Problem, name: str, planner: Planner) -> Solution:
    """As `solve`, by any planner, which is told as `name`."""
    check_device(problem.config.optimizer, problem.cluster.device.kind)
    start = time.perf_counter()
    with _telling_what_matters():
        try:
            plan, options = planner(problem.model, problem.tables, problem.topology, problem.samples, problem.sharder)
        except TooLargeError as error:
            raise DoesNotFitError(_too_large(problem, error.tables)) from error
    check_plan(plan, table_configs(problem.model), problem.cluster.ranks)
    return Solution(problem, plan, options, name, time.perf_counter() - start)


@contextmanager
def _telling_what_matters() -> Iterator[None]:
    """Without the planner's warning for every data-parallel table, which rightly has no sharding spec."""

    def worth_telling(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Sharding spec not found")

    root = logging.getLogger()
    root.addFilter(worth_telling)
    try:
        yield
    finally:
        root.removeFilter(worth_telling)


def _too_large(problem: Problem, homeless: list[int]) -> str:
    """Which tables do not fit, and by how much."""
    sizes = {
        table.name: (table.weight.nbytes + STATE_BYTES * state_elements(table.weight, table.weight.numel())) / GB
        for table in problem.tables
    }
    shown = homeless or sorted(range(len(sizes)), key=lambda place: -list(sizes.values())[place])[:3]
    names = ", ".join(
        f"{table.name} ({table.rows} x {table.dim}, {sizes[table.name]:.3g} GB)"
        for table in (problem.tables[place] for place in shown[:3])
    ) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
    free = problem.cluster.device.memory - (problem.reserved_bytes + problem.dense_bytes) / GB
    total, ranks = sum(sizes.values()), problem.cluster.ranks
    lacking = total - max(0.0, free) * ranks
    reason = f"{lacking:.3g} GB too much" if lacking > 0 else "too much as sharded"
    return (
        f"tables: {total:.3g} GB of weights and optimizer state do not fit into {max(free, 0):.3g} GB on each of "
        f"{ranks} ranks ({reason}); {'they fit nowhere:' if homeless else 'the largest are'} {names}"
    )
