"""Compare our sharding plans with TorchRec's default planner and a lower bound: slowest rank and planning time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.planner.utils import build_sharder_data

from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.planner.costs import SHARD_LAUNCH_MILLISECONDS, table_costs
from asymdiffrec.embeddings.planner.devices import Cluster, find_device
from asymdiffrec.embeddings.planner.packing import Capacity
from asymdiffrec.embeddings.planner.search import lower_bound
from asymdiffrec.embeddings.planner.search_planner import plan_by_search
from asymdiffrec.embeddings.planner.sharding_choices import sharding_choices
from asymdiffrec.embeddings.planner.step_time import shard_milliseconds
from asymdiffrec.embeddings.planner.torchrec_planner import plan_by_torchrec
from asymdiffrec.embeddings.sharder import TableSharder
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from benchmarks._report import arguments, show
from benchmarks._result import Result
from benchmarks._tables import RESERVED, TableSet, criteo, ten_sets

PER_NODE, BATCH = 8, 1024


def milliseconds(options: Sequence[ShardingOption], ranks: int) -> np.ndarray:
    """Return TorchRec's estimate of the time of each rank's shards, [ranks] in milliseconds."""
    time = np.zeros(ranks)
    for option in options:
        for rank, duration in shard_milliseconds(option).items():
            time[rank] += duration
    return time


def compare(tables: TableSet, nodes: int, with_torchrec: bool) -> Iterator[Result]:
    """Plan a set of tables for some nodes.

    Yield the time of the slowest rank, the number of used ranks, the planning time.
    """
    topology = Cluster(find_device("h100"), nodes, PER_NODE).topology(reserved=RESERVED)
    ranks, sharder = topology.world_size, TableSharder(TablesConfig(), "cuda")
    name = f"{tables.name}, {ranks} ranks"
    start = time.perf_counter()
    model = tables.model()
    planned = tables.planned(model)
    ours = milliseconds(plan_by_search(model, planned, topology, BATCH, sharder)[1], ranks)
    seconds = time.perf_counter() - start

    cost = table_costs(planned, sharding_choices(("fused",)), topology, BATCH, build_sharder_data(sharder))
    storage = topology.devices[0].storage
    cost = replace(cost, time=cost.time - SHARD_LAUNCH_MILLISECONDS)  # TorchRec's estimates count no launches
    bound = lower_bound(cost, Capacity(ranks, PER_NODE, storage.hbm, storage.ddr))
    yield Result(name, ours.max(), "ms", "lower bound", bound, "at most 1.15 of it", bool(ours.max() <= 1.15 * bound))
    used = float((ours > 0).sum())
    if not with_torchrec:
        yield Result(f"{name}: used", used, "ranks", "all", ranks, "all of them", used == ranks)
        yield Result(f"{name}: planning", seconds, "s", "the limit", 10.0, "at most 10 s", seconds <= 10)
        return
    start = time.perf_counter()
    model = tables.model()
    theirs = milliseconds(plan_by_torchrec(model, tables.planned(model), topology, BATCH, sharder)[1], ranks)
    slow = time.perf_counter() - start
    holds = bool(ours.max() <= 0.55 * theirs.max())
    yield Result(name, ours.max(), "ms", "TorchRec's planner", theirs.max(), "at most 0.55 of it", holds)
    yield Result(f"{name}: used", used, "ranks", "TorchRec's planner", float((theirs > 0).sum()))
    yield Result(f"{name}: planning", seconds, "s", "TorchRec's planner", slow)


def measure(quick: bool) -> Iterator[Result]:
    """Yield the results for each set of tables."""
    for tables in [criteo()] if quick else ten_sets():
        yield from compare(tables, nodes=1 if quick else 8, with_torchrec=True)
    for tables in [] if quick else ten_sets():
        yield from compare(tables, nodes=128, with_torchrec=False)


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    logging.disable(logging.WARNING)
    options = arguments(__doc__ or "")
    results = []
    with Console(stderr=True).status("planning") as status:
        for result in measure(options.quick):
            results.append(result)
            status.update(f"planning; last: {result.name}")
    show(results, options)


if __name__ == "__main__":
    main()
