"""Measure reading of files into batches, compared with Arrow, Ray Data and a DataLoader; resuming; `prepare table`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import ray
from rich.console import Console
from torch.utils.data import DataLoader

from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.datasets.reader import Position, TrainingReader
from asymdiffrec.datasets.shards import Shards, open_shards
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run
from benchmarks._layouts import Collate, Frame, Layout, ray_batches, tensors
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result

LAYOUTS = (
    Layout("39 ids, 3 lists", integers=39, lists=3),
    Layout("Criteo, 13 numbers, 26 strings", integers=0, strings=26, numbers=13),
)
BATCH = 4096
LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""
"""Program that runs a command and prints its peak memory in KiB. The benchmark does not start the command itself,
because the peak memory of a child process includes the memory of its parent"""
MIN_OVER_PEERS = 5.0
"""Goal: smallest ratio of our speed to the speed of Ray Data and of a DataLoader"""


def decode(shards: Shards, columns: list[str], threads: int) -> None:
    """Decode all row groups with Arrow in `threads` threads, and discard the result."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda group: len(shards.read(group, columns)), range(len(shards.row_groups))):
            pass


def read_epoch(reader: TrainingReader) -> None:
    """Read all batches of an epoch."""
    for _ in islice(reader.batches(Position()), reader.steps_per_epoch):
        pass


def reading(layout: Layout, folder: Path, rows: int, threads: int, quick: bool) -> Iterator[Result]:
    """Compare the speed of our reader with Arrow, Ray Data and a DataLoader, each with `threads` threads or workers."""
    schema, shards = layout.schema(threads), open_shards(str(folder))
    columns = [*layout.columns, "label"]
    reader = TrainingReader(schema, shards, 0, BATCH)
    rounds = 1 if quick else 3
    name = f"{layout.name}, {threads} thread{'s' if threads > 1 else ''}"

    def result(peer: str, ours: float, theirs: float, peer_rows: int, goal: float) -> Result:
        rates = reader.steps_per_epoch * BATCH / ours, peer_rows / theirs
        return Result(name, rates[0], "rows/s", peer, rates[1], f"at least {goal:g} times", rates[0] >= goal * rates[1])

    ours, theirs = alternate(partial(read_epoch, reader), partial(decode, shards, columns, threads), rounds)
    yield result("bare Parquet decoding", ours, theirs, rows, 0.7)

    def read_by_ray(shuffled: int | None) -> None:
        for table in ray_batches(folder, columns, BATCH, shuffled):
            tensors(schema, table)

    window = schema.data.window * schema.data.lanes  # number of rows from which our reader draws a batch
    for peer, shuffled in (("Ray Data, in order", None), ("Ray Data, shuffled", min(window, rows // 2)))[quick:]:
        with ray_cluster(threads):  # its processes run on the cores of this process
            ours, theirs = alternate(partial(read_epoch, reader), partial(read_by_ray, shuffled), 1)
        yield result(peer, ours, theirs, rows // BATCH * BATCH, MIN_OVER_PEERS)

    slow_rows = min(rows, 2 * BATCH if quick else 8 * BATCH)
    frame = Frame(pq.read_table(folder, columns=columns).slice(0, slow_rows))
    workers = threads if threads > 1 else 0
    loader = DataLoader(frame, BATCH, shuffle=True, collate_fn=Collate(schema), num_workers=workers, drop_last=True)

    def read_by_loader() -> None:
        for _ in loader:
            pass

    ours, theirs = alternate(partial(read_epoch, reader), read_by_loader, 1)
    yield result("DataLoader over pandas", ours, theirs, slow_rows // BATCH * BATCH, MIN_OVER_PEERS)


@contextlib.contextmanager
def cores(count: int) -> Iterator[None]:
    """Limit this process, its new threads and its new child processes to `count` cores inside the `with` block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    yield
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def ray_cluster(cores: int) -> Iterator[None]:
    """Run Ray on this host, without output, inside the `with` block."""
    ray.init(
        "local",
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield
    ray.shutdown()


def resuming(layout: Layout, folder: Path) -> Result:
    """Compare two ways to get the batch in the middle of an epoch, in seconds.

    Our reader starts at the position of the batch. The peer reads all batches before it.
    """
    reader = TrainingReader(layout.schema(threads=len(os.sched_getaffinity(0))), open_shards(str(folder)), 0, BATCH)
    middle = reader.steps_per_epoch // 2

    def seconds(position: Position, batches: int) -> float:
        start, stream = time.perf_counter(), reader.batches(position)
        for _ in islice(stream, batches):
            pass
        duration = time.perf_counter() - start
        stream.close()  # waits for batches that are read ahead
        return duration

    rounds = [(seconds(Position(1, middle), 1), seconds(Position(1, 0), middle + 1)) for _ in range(4)]
    ours, theirs = (statistics.median(durations[1:]) for durations in zip(*rounds, strict=True))
    return Result("a position to its first batch", ours, "s", "reading up to it", theirs, "under 1 s", ours < 1)


def waiting(folder: Path, quick: bool) -> Result:
    """Train the job that `prepare synthetic` writes, and return the share of time that training waits for data."""
    prepare_synthetic(folder / "clicks", rows=5_000 if quick else 400_000)
    overrides = ["train.log_every=10", *(["train.epochs=1"] if quick else [])]
    job = read_job(folder / "clicks" / "job.yaml", overrides)
    train_job(job, read_statistics(job), Run(folder / "run"), console=Console(quiet=True))
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "data_wait" in record]
    seconds = [1 / record["samples_per_second"] for record in steps]
    wait = sum(a * b["data_wait"] for a, b in zip(seconds, steps, strict=True)) / sum(seconds)
    goal = "under 0.02"
    return Result("a training step's wait for data", wait, "of its time", "the step", 1.0, goal, wait < 0.02)


def generate(file: Path, rows: int) -> None:
    """Write a click log as a CSV file. Columns: label, time, 6 ids, 4 numbers (5 % missing), 2 strings."""
    columns = ["(random() < 0.2)::INT AS label", "i AS time"]
    columns += [f"hash(i, {k}) % {10 ** (k + 2)} AS id_{k}" for k in range(6)]
    columns += [f"CASE WHEN random() > 0.05 THEN round(random() * 1000, 2) END AS number_{k}" for k in range(4)]
    columns += [f"'word ' || (hash(i, 9, {k}) % {10 ** (k + 3)}) AS text_{k}" for k in range(2)]
    with duckdb.connect(config={"memory_limit": "1GB"}) as database:
        database.execute(f"COPY (SELECT {', '.join(columns)} FROM range({rows}) t(i)) TO '{file}' (HEADER)")


def preparing(folder: Path, rows: int) -> Iterator[Result]:
    """Measure the speed and memory of `prepare table` in a subprocess. Its peer is Arrow, which only reads the file."""
    file = folder / "log.csv"
    generate(file, rows)
    script = Path(sys.executable).with_name("asymdiffrec")
    command = [script, "prepare", "table", folder / "table", "--input", file]
    start = time.perf_counter()
    launched = subprocess.run([sys.executable, "-c", LAUNCHER, *map(str, command)], check=True, capture_output=True)
    ours = time.perf_counter() - start
    written = sum(open_shards(str(folder / "table" / split)).rows for split in ("train", "valid", "test"))
    assert written == rows
    start = time.perf_counter()
    read = sum(len(batch) for batch in pacsv.open_csv(file))
    theirs = time.perf_counter() - start
    assert read == rows
    yield Result(f"prepare table, {rows:,} rows of CSV", rows / ours, "rows/s", "pyarrow.csv", rows / theirs)
    peak = int(launched.stdout.split()[-1]) / 2**20
    yield Result("its peak memory", peak, "GiB", "the limit", 2.0, "at most 2 GiB", peak <= 2)


def measure(quick: bool) -> Iterator[Result]:
    """Yield all results."""
    rows = 20_000 if quick else 2_000_000
    with tempfile.TemporaryDirectory() as temporary:
        for number, layout in enumerate(LAYOUTS[:1] if quick else LAYOUTS):
            folder = Path(temporary) / f"layout-{number}"
            layout.write(folder, rows)
            for threads in (1,) if quick else (1, 2):
                with cores(threads):
                    yield from reading(layout, folder, rows, threads, quick)
            yield resuming(layout, folder)
        yield waiting(Path(temporary), quick)
        yield from preparing(Path(temporary), 20_000 if quick else 10_000_000)


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    options = arguments(__doc__ or "")
    results = []
    with Console(stderr=True).status("measuring") as status:
        for result in measure(options.quick):
            results.append(result)
            status.update(f"measuring; last: {result.name}")
    show(results, options)


if __name__ == "__main__":
    main()
