"""The sharding plan: which rank holds which part of which table, how long a step takes, and whether it fits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ShardingPlan

from asymdiffrec.base import InputError
from asymdiffrec.embeddings.optimizers import check_device
from asymdiffrec.embeddings.planner.devices import GB
from asymdiffrec.embeddings.planner.estimators import STATE_ELEMENT_BYTES
from asymdiffrec.embeddings.planner.plan_validation import validate_plan
from asymdiffrec.embeddings.planner.planned_tables import table_configs
from asymdiffrec.embeddings.planner.problem import Problem
from asymdiffrec.embeddings.planner.rank_memory import TableMemory, table_memory
from asymdiffrec.embeddings.planner.search import TooLargeError
from asymdiffrec.embeddings.planner.search_planner import plan_by_search
from asymdiffrec.embeddings.planner.step_time import StepTime, TableTimes, shard_milliseconds, step_time, table_times
from asymdiffrec.embeddings.torchrec_compat import optimizer_state_elements

MAX_NAMED_TABLES = 3
"""Maximum number of tables that an error message names."""

Planner: TypeAlias = Callable[..., tuple[ShardingPlan, list[ShardingOption]]]
"""A function with the same arguments and the same result as `plan_by_search`."""


class DoesNotFitError(InputError):
    """The tables do not fit into the memory of the ranks with the shardings that the job allows."""


@dataclass(frozen=True)
class Solution:
    """A plan for a problem, with TorchRec's estimates for each shard."""

    problem: Problem
    plan: ShardingPlan
    options: list[ShardingOption]
    planner: str
    seconds: float

    @cached_property
    def memory(self) -> TableMemory:
        """Bytes of tables on each rank."""
        return table_memory(self.options, self.problem.topology)

    @cached_property
    def times(self) -> TableTimes:
        """Milliseconds of the tables on each rank, at the device's nominal rates."""
        return table_times(self.options, self.problem.cluster.world_size)

    @cached_property
    def step(self) -> StepTime:
        """The time of a step, by part."""
        problem = self.problem
        batch_size = problem.samples_per_rank * problem.cluster.world_size
        return step_time(self.times, problem.dense, problem.cluster, batch_size)

    @cached_property
    def slowest_rank(self) -> int:
        """The rank whose tables take longest."""
        return int(self.times.milliseconds.argmax())

    @cached_property
    def milliseconds_on_slowest_rank(self) -> dict[str, float]:
        """Milliseconds that each table takes on the slowest rank, by table name."""
        return {option.name: shard_milliseconds(option).get(self.slowest_rank, 0.0) for option in self.options}


def solve(problem: Problem, planner: Planner = plan_by_search, name: str = "search") -> Solution:
    """Return a plan, without a process group and without memory for the tables.

    `name` is the name of the planner. Raises InputError if the device does not support the optimizer, or if a sharding
    that the job sets would leave ranks without rows. Raises DoesNotFitError if the tables do not fit.
    """
    check_device(problem.config.optimizer, problem.cluster.device.kind)
    start = time.perf_counter()
    with _without_sharding_spec_warnings():
        try:
            plan, options = planner(
                problem.model, problem.tables, problem.topology, problem.samples_per_rank, problem.sharder
            )
        except TooLargeError as error:
            raise DoesNotFitError(_does_not_fit(problem, error.tables)) from error
    validate_plan(plan, table_configs(problem.model), problem.cluster.world_size)
    return Solution(problem, plan, options, name, time.perf_counter() - start)


@contextmanager
def _without_sharding_spec_warnings() -> Iterator[None]:
    """Suppress TorchRec's warning that data-parallel tables have no sharding spec; they do not need a spec."""

    def is_useful(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Sharding spec not found")

    root = logging.getLogger()
    root.addFilter(is_useful)
    try:
        yield
    finally:
        root.removeFilter(is_useful)


def _does_not_fit(problem: Problem, too_large: list[int]) -> str:
    """Return the error message: how many GB do not fit, and which tables.

    `too_large` has the indices of tables that are too large for any rank by themselves.
    """
    tables = problem.tables
    sizes = [
        (table.weight.nbytes + STATE_ELEMENT_BYTES * optimizer_state_elements(table.weight, table.weight.numel())) / GB
        for table in tables
    ]
    named = too_large or sorted(range(len(sizes)), key=lambda index: -sizes[index])[:MAX_NAMED_TABLES]
    names = ", ".join(
        f"{tables[index].name} ({tables[index].num_embeddings} x {tables[index].embedding_dim}, {sizes[index]:.3g} GB)"
        for index in named[:MAX_NAMED_TABLES]
    )
    if len(named) > MAX_NAMED_TABLES:
        names += f" and {len(named) - MAX_NAMED_TABLES} more"
    free = problem.cluster.device.memory - (problem.reserved_bytes + problem.dense_bytes) / GB
    total, ranks = sum(sizes), problem.cluster.world_size
    excess = total - max(0.0, free) * ranks
    reason = f"{excess:.3g} GB too much" if excess > 0 else "too large for the sharding that the job allows"
    return (
        f"tables: {total:.3g} GB of weights and optimizer state do not fit into {max(free, 0):.3g} GB on each of "
        f"{ranks} ranks ({reason}); {'these tables fit on no rank:' if too_large else 'the largest tables are'} {names}"
    )
