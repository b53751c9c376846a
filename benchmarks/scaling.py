"""Compare the step time with bare TorchRec, by batch size, number of fields, num_embeddings and number of workers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from benchmarks._clicks import SMALL, Clicks
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result

BATCH = (512, 2048, 8192, 32_768)
FIELDS = (8, 32, 128, 512)
ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
FIELDS_OF_LARGE_TABLES = 4
"""Number of fields in the measurements with large tables, so that the tables fit into memory"""
WORKERS = (1, 2)
SLACK = 1.1
"""Factor by which repeated timings differ on an idle host"""
PEER = "bare TorchRec"


def measure_worker(rank: int, workers: int, clicks: Clicks, quick: bool, store: str) -> tuple[float, float]:
    """Return the step time of asymdiff and of bare TorchRec on worker `rank`, in milliseconds.

    Both loops take turns.
    """
    silence_torchrec_warnings()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    count, rounds = (1, 1) if quick else (3, 3)
    with process_group(dist.FileStore(store, workers), rank, workers, ClusterConfig(gpu=False), one_host=True):
        batches = clicks.batches(count, clicks.batch // workers, seed=rank)
        ours, theirs = alternate(clicks.ours(batches, "asymdiff"), clicks.bare_torchrec(batches), rounds)
        dist.barrier()
    return 1e3 * ours / count, 1e3 * theirs / count


def step_times(clicks: Clicks, quick: bool, workers: int = 1) -> tuple[float, float]:
    """Return the result of `measure_worker` for worker 0.

    Each call starts new processes, so that the memory of one size does not affect the next size.
    """
    with TemporaryDirectory() as folder, get_context("spawn").Pool(workers) as pool:
        arguments_of_ranks = [(rank, workers, clicks, quick, str(Path(folder) / "store")) for rank in range(workers)]
        first, *_ = pool.starmap(measure_worker, arguments_of_ranks, chunksize=1)
        return first


def growth(axis: str, sizes: Sequence[int], times: Sequence[tuple[float, float]], grows: bool) -> Result:
    """Return the ratio of the step times at the largest and the smallest size.

    The peer is the ratio of the work at these sizes, or the ratio of TorchRec's times if the work is the same.
    """
    name = f"time of a step, {axis} {sizes[0]:,} to {sizes[-1]:,}"
    ours, theirs = (last / first for first, last in zip(times[0], times[-1], strict=True))
    goal = "no more than it"
    if grows:
        work = sizes[-1] / sizes[0]
        return Result(name, ours, "times", "its work", work, goal, ours <= SLACK * work)
    return Result(name, ours, "times", PEER, theirs, goal, ours <= SLACK * theirs)


def measure(quick: bool) -> Iterator[Result]:
    """Yield the step time at each size, and the growth of the step time along each axis."""
    default = SMALL if quick else Clicks()
    axes = {
        "batch": [(size, replace(default, batch=size), 1) for size in BATCH],
        "fields": [(size, replace(default, fields=size), 1) for size in FIELDS],
        "rows": [(size, replace(default, rows=size, fields=FIELDS_OF_LARGE_TABLES), 1) for size in ROWS],
        "workers": [(size, default, size) for size in WORKERS],
    }
    for axis, points in axes.items():
        if quick:
            points = points[:1] if axis != "workers" else points
        times = [step_times(clicks, quick, workers) for _, clicks, workers in points]
        sizes = [size for size, _, _ in points]
        for size, (ours, theirs) in zip(sizes, times, strict=True):
            yield Result(f"step of asymdiff, {axis} = {size}", ours, "ms", PEER, theirs)
        yield growth(axis, sizes, times, grows=axis in ("batch", "fields"))


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    options = arguments(__doc__ or "")
    results = list(measure(options.quick))
    show(results, options)


if __name__ == "__main__":
    main()
