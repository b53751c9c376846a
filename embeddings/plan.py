"""The sharding plan: which rank holds which part of which table, how long a step takes, and whether it fits."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.planner.types import ShardingOption, Topology
from torchrec.distributed.types import ShardingPlan

from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.optimizers import check_device
from asymdiffrec.embeddings.planner.by_torchrec import plan_by_torchrec
from asymdiffrec.embeddings.planner.check import check_plan
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import DEVICES, GB, Cluster, Device
from asymdiffrec.embeddings.planner.estimators import STATE_BYTES, state_elements
from asymdiffrec.embeddings.planner.fast import pinned, plan_fast
from asymdiffrec.embeddings.planner.memory import TableMemory, table_memory
from asymdiffrec.embeddings.planner.search import TooLargeError
from asymdiffrec.embeddings.planner.step import StepTime, TableTimes, step_time, table_times
from asymdiffrec.embeddings.planner.tables import PlannedTable, planned_tables, table_configs
from asymdiffrec.embeddings.planner.ways import Way, ways
from asymdiffrec.embeddings.sharder import TableSharder
from asymdiffrec.embeddings.tables import TablesConfig

T = TypeVar("T")

RESERVED = 0.15
"""Share of a rank's memory that nothing is planned for: batches in flight, libraries, the allocator's loss."""

DENSE_COPIES = 6
"""What a dense parameter costs, in parameters: itself, its gradient, two moments, and buckets to reduce gradients."""

PLANNERS: Mapping[str, Callable[..., tuple[ShardingPlan, list[ShardingOption]]]] = {
    "fast": plan_fast,
    "torchrec": plan_by_torchrec,
}


class DoesNotFitError(ValueError):
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
        return 4 * DENSE_COPIES * self.dense.parameters + self.dense.activations

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
        """Raises ValueError where a sharding that the job fixes would leave ranks without rows."""
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
            raise ValueError(
                f"tables.per_table.{table.name}: {table.rows} rows; with collision: managed on {self.cluster.ranks} "
                f"ranks a table needs a multiple of {whole}, such as {-(-table.rows // whole) * whole}"
            )
        asked = " or ".join(table.sharding) + (f" on {table.parts} ranks" if table.parts else "")
        free = [kind for kind in kinds if self._has_way(replace(table, sharding=[kind]))]
        raise ValueError(
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


def solve(problem: Problem, planner: str = "fast") -> Solution:
    """A plan by one of PLANNERS; needs no process group and no memory for the tables.

    ValueError, in one line, where the device lacks the optimizer or a sharding that the job fixes would leave ranks
    without rows; DoesNotFitError where the tables do not fit.
    """
    return _solved(problem, planner, lambda *arguments: PLANNERS[planner](*arguments))


def solve_as(problem: Problem, document: Mapping[str, Any]) -> Solution:
    """The plan that was written down in `document`, with the estimates of the problem's cluster.

    Raises ValueError where it is none for this problem: for other ranks or tables, or against what the job says.
    """
    chosen, ranks = read_plan(problem, document)

    def written(
        model: nn.Module, tables: list[PlannedTable], topology: Topology, batch_size: int, sharder: TableSharder
    ) -> tuple[ShardingPlan, list[ShardingOption]]:
        return pinned(model, tables, chosen, ranks, topology, batch_size, sharder)

    return _solved(problem, "file", written)


def _solved(problem: Problem, name: str, planner: Callable[..., Any]) -> Solution:
    check_device(problem.config.optimizer, problem.cluster.device.kind)
    start = time.perf_counter()
    with _telling_what_matters():
        try:
            plan, options = planner(problem.model, problem.tables, problem.topology, problem.samples, problem.sharder)
        except TooLargeError as error:
            raise DoesNotFitError(_too_large(problem, error.tables)) from error
    check_plan(plan, table_configs(problem.model), problem.cluster.ranks)
    return Solution(problem, plan, options, name, time.perf_counter() - start)


def read_plan(problem: Problem, document: Mapping[str, Any]) -> tuple[list[Way], list[list[int]]]:
    """The way and the ranks of each table of the problem, from what `describe_plan` wrote."""
    ranks = problem.cluster.ranks
    if document.get("world_size") != ranks:
        raise ValueError(f"the plan is for {document.get('world_size')} ranks; there are {ranks}")
    if document.get("local_world_size", ranks) != problem.cluster.per_node:
        raise ValueError(
            f"the plan is for machines of {document['local_world_size']} ranks; here are {problem.cluster.per_node}"
        )
    entries = {entry["name"]: entry for entry in document["tables"]}
    names = [table.name for table in problem.tables]
    if difference := sorted(set(entries) ^ set(names)):
        holder = "the plan" if difference[0] in entries else "the job"
        raise ValueError(f"the plan is of other tables: {difference[0]} is in {holder} alone")
    chosen, places = [], []
    for table in problem.tables:
        entry = entries[table.name]
        size = [entry["rows"], entry["dim"]]
        if size != [table.rows, table.dim]:
            raise ValueError(
                f"the plan is of other tables: {table.name} is {size[0]} x {size[1]} there, and "
                f"{table.rows} x {table.dim} in the job"
            )
        way = Way(entry["sharding"], entry["kernel"], table.dim // entry["shard_columns"], entry["cached"])
        here = [rank for rank in entry["ranks"] if rank in range(ranks)]
        if not way.is_open(replace(table, split=True), problem.topology) or len(here) != way.shards(problem.topology):
            raise ValueError(
                f"the plan shards {table.name} {way.sharding} ({way.kernel}), which the job does not allow"
            )
        chosen.append(way)
        places.append(entry["ranks"])
    return chosen, places


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


def local_cluster(device: str, known: Device | None, world_size: int) -> Cluster:
    """Ranks like this one, on machines like this one; `known` has its rates, or None for those of what is found.

    Memory is that of the GPU, or for `cpu` the rank's share of the machine's.
    """
    local = get_local_size(world_size)
    if device == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / local
    else:
        memory = torch.cuda.get_device_properties(device).total_memory
    found = known or _likely_device(device)
    return Cluster(found.model_copy(update={"memory": memory / GB}), world_size // local, local)


def _likely_device(device: str) -> Device:
    """The known device that this one is called like; the most common GPU where it is like none."""
    if device == "cpu":
        return DEVICES["cpu"]
    words = torch.cuda.get_device_name(device).lower()
    return next((known for name, known in DEVICES.items() if name.split("-")[0] in words), DEVICES["a100-80"])


def agreed(make: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What rank 0 makes, on every rank of `group` (all by default).

    A ValueError of `make` is raised on every rank too, so that none waits forever.
    """
    group = group or dist.distributed_c10d._get_default_group()
    outcome: list[T | ValueError | None] = [None]
    if group.rank() == 0:
        try:
            outcome[0] = make()
        except ValueError as error:
            outcome[0] = ValueError(str(error))
    dist.broadcast_object_list(outcome, group=group, group_src=0)
    (found,) = outcome
    if isinstance(found, ValueError):
        raise found
    return cast(T, found)


@contextmanager
def _telling_what_matters() -> Any:
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
