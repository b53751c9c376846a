"""Measure training from Parquet files: the speed of the reader alone, and the time that steps wait for data."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import Position, TrainingReader
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.trainer.fit.pipeline import build_pipeline
from benchmarks._result import Result
from benchmarks.gpu.criteo import CriteoClicks
from benchmarks.gpu.measure import MAX_LOSS, free_memory, seconds
from benchmarks.gpu.outputs import Failure, Output

ROW_GROUP = 16_384
WARMUP_STEPS = 8
"""Steps before the measurement. They compile the model and start the read-ahead"""
MAX_STEPS = 200


def from_parquet(clicks: CriteoClicks, quick: bool, traces: Path) -> Iterator[Output]:
    """Measure the reader alone, and the training of base and asymdiff with the same reader, in rows per second."""
    files, rows = (2, 4_000) if quick else (16, 250_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: write(clicks, folder, rows, number), range(files)))
        yield {"rows": files * rows, "bytes": sum(file.stat().st_size for file in folder.iterdir())}
        reader = TrainingReader(clicks.job().to_schema(), open_shards(str(folder)), 0, clicks.batch)
        alone = max(reader_rate(clicks, reader) for _ in range(2))  # the first call compiles
        yield {"threads": reader.threads, "steps_per_epoch": reader.steps_per_epoch, "reader_rows_per_second": alone}
        for method in ("base", "asymdiff"):
            try:
                rate, wait = training_rate(clicks, reader, method)
                yield Result(f"training of {method} from Parquet", rate, "samples/s", "the reader alone", alone)
                yield Result(f"wait of {method} for data", wait, "of its time", "the step", 1.0)
            except Exception as error:
                yield Failure.of(method, error)
            free_memory()


def write(clicks: CriteoClicks, folder: Path, rows: int, number: int) -> None:
    """Write one Parquet file of random samples."""
    pq.write_table(clicks.table(rows, number), folder / f"part-{number:02}.parquet", row_group_size=ROW_GROUP)


def reader_rate(clicks: CriteoClicks, reader: TrainingReader) -> float:
    """Read an epoch without training; return the speed in rows per second."""
    batches = reader.batches(Position(), pinned=clicks.device.type == "cuda")
    start = time.perf_counter()
    for _ in islice(batches, reader.steps_per_epoch):
        pass
    duration = time.perf_counter() - start
    batches.close()
    return reader.steps_per_epoch * clicks.batch / duration


class Waiting:
    """An iterator over batches that counts the seconds of waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        self.seconds += time.perf_counter() - start
        return batch


def training_rate(clicks: CriteoClicks, reader: TrainingReader, method: str) -> tuple[float, float]:
    """Train some steps; return the speed in samples per second and the share of time spent waiting for data."""
    training = build_pipeline(clicks.build(clicks.job(method)), lambda loss: bool(loss.detach().abs() <= MAX_LOSS))
    batches = reader.batches(Position(), pinned=clicks.device.type == "cuda")
    waiting = Waiting(batches)
    for _ in range(WARMUP_STEPS):
        training.progress(waiting)
    waiting.seconds, count = 0.0, min(2 * reader.steps_per_epoch, MAX_STEPS)
    duration = seconds(lambda: [training.progress(waiting) for _ in range(count)])
    batches.close()
    return count * clicks.batch / duration, waiting.seconds / duration
