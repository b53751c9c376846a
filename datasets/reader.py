"""Readers that make batches from Parquet shards: endless and shuffled for training, each row once for evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import ceil

import numpy as np

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch, to_batch, to_batches
from asymdiffrec.datasets.batching.buffers import BufferPool
from asymdiffrec.datasets.decoding.column_check import check_columns
from asymdiffrec.datasets.decoding.rows import Rows, no_rows
from asymdiffrec.datasets.memory_check import cache_limit, require_memory, required_memory
from asymdiffrec.datasets.prefetch import prefetch
from asymdiffrec.datasets.row_group_cache import RowGroupCache, decode_row_group
from asymdiffrec.datasets.sample_order import Epoch, evaluation_slice, row_checksums
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards


@dataclass(frozen=True)
class WorkerContext:
    """The rank of a worker, the number of workers, and the number of workers on its host."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    def reader_threads(self, threads: int | None) -> int:
        """Return `threads`; if it is None, the cores of the host divided by its workers, at least 1."""
        return threads or max(1, len(os.sched_getaffinity(0)) // self.local_world_size)


@dataclass(frozen=True)
class Position:
    """A position in training: the next batch is batch `step` of epoch `epoch`; both count from 0."""

    epoch: int = 0
    step: int = 0


def make_epoch(schema: Schema, shards: Shards, seed: int, batch_size: int, number: int = 0) -> Epoch:
    """Return the sample order of epoch `number`; `batch_size` is global."""
    return Epoch(shards.sizes, seed, number, batch_size, schema.data.lanes, schema.data.window)


class TrainingReader:
    """Reader of the training batches of one worker, in the order that `sample_order.py` defines.

    `batch_size` is global: a batch of one worker has batch_size / world_size rows. The batches of all workers for a
    step, concatenated by rank, are the same for any number of workers. A worker keeps in memory the decoded row groups
    that its lanes read now. Row groups that they have read before stay in a cache, see `memory_check.cache_limit`; the
    cache affects only the speed.

    >>> import tempfile
    >>> import pyarrow as pa, pyarrow.parquet as pq
    >>> from asymdiffrec.datasets.schema import FieldsConfig
    >>> from asymdiffrec.datasets.shards import open_shards
    >>> config = {"data": {"lanes": 4}, "fields": {"item": {"type": "id", "num_embeddings": 1000}}}
    >>> schema = FieldsConfig.model_validate(config).to_schema()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pq.write_table(pa.table({"item": range(100), "label": [0, 1] * 50}), f"{folder}/a.parquet")
    ...     reader = TrainingReader(schema, open_shards(folder), seed=1, batch_size=32)
    ...     batches = reader.batches(Position())
    ...     reader.steps_per_epoch, len(next(batches))
    ...     batches.close()
    (3, 32)

    Raises InputError in these cases: the batch size is no multiple of the lanes, the workers do not divide the lanes,
    the split has fewer rows than one batch, a column is missing or has a wrong type, or the row groups do not fit into
    memory.
    """

    def __init__(
        self, schema: Schema, shards: Shards, seed: int, batch_size: int, worker: WorkerContext | None = None
    ) -> None:
        self.schema, self.shards, self.seed, self.batch_size = schema, shards, seed, batch_size
        self.worker = worker or WorkerContext()
        self.threads = self.worker.reader_threads(schema.data.threads)
        lanes = schema.data.lanes
        if batch_size % lanes:
            raise InputError(f"train.batch_size is {batch_size}; it must be a multiple of data.lanes ({lanes})")
        if lanes % self.worker.world_size:
            raise InputError(
                f"data.lanes is {lanes}; it must be a multiple of the number of workers ({self.worker.world_size})"
            )
        self.steps_per_epoch = self._epoch(0).steps
        if not self.steps_per_epoch:
            raise InputError(
                f"the training split has {shards.rows} rows, fewer than one batch of {batch_size}; "
                "lower train.batch_size"
            )
        check_columns(schema, shards, labelled=True)
        require_memory(shards, schema.columns(labelled=True), self._row_groups_in_use)

    @property
    def _row_groups_in_use(self) -> int:
        """The maximum number of row groups in use on this host: one for each lane, and one more for each thread."""
        lanes = self.schema.data.lanes // self.worker.world_size
        return (lanes + self.threads) * self.worker.local_world_size

    def position(self, step: int) -> Position:
        """Return the position after `step` batches since the start of the run."""
        return Position(*divmod(step, self.steps_per_epoch))

    def batches(self, position: Position, pinned: bool = False) -> Generator[Batch]:
        """Yield batches without end, starting at a position; the next window is prepared in the background.

        If `pinned` is true, the batches are in page-locked memory. Raises InputError with file, column and row for a
        value that its field does not allow.
        """
        with ThreadPoolExecutor(self.threads, thread_name_prefix="reader") as pool:
            for window in prefetch(self._windows(position, BufferPool(pinned), pool), 1):
                while window:  # pop: the list must not keep a batch alive that the consumer has released
                    yield window.pop(0)

    def _epoch(self, number: int) -> Epoch:
        return make_epoch(self.schema, self.shards, self.seed, self.batch_size, number)

    def _windows(
        self, position: Position, buffers: BufferPool, pool: ThreadPoolExecutor
    ) -> Iterator[Callable[[], list[Batch]]]:
        """Yield a job for each window, starting at a position. The job returns the batches of the window."""
        required = required_memory(self.shards, self.schema.columns(labelled=True), self._row_groups_in_use)
        limit = cache_limit(required, self.worker.local_world_size)
        cache = RowGroupCache(self.schema, self.shards, limit, pool)
        first = position.step
        for number in count(position.epoch):
            epoch = self._epoch(number)
            for start in range(0, epoch.steps, epoch.steps_per_window):
                steps = range(max(first, start), min(start + epoch.steps_per_window, epoch.steps))
                if steps:
                    yield partial(self._window, epoch, steps, cache, buffers, pool)
            first = 0

    def _window(
        self, epoch: Epoch, steps: range, cache: RowGroupCache, buffers: BufferPool, pool: ThreadPoolExecutor
    ) -> list[Batch]:
        """Return the batches of the given steps, which must be in one window."""
        lanes_per_worker = epoch.lanes // self.worker.world_size
        lanes = range(self.worker.rank * lanes_per_worker, (self.worker.rank + 1) * lanes_per_worker)
        window, skipped = divmod(steps.start, epoch.steps_per_window)
        slices = [epoch.window_slices(lane, window) for lane in lanes]
        rows, starts = zip(*cache.windows(slices), strict=True)
        per_step = epoch.rows_per_step
        order = np.empty((len(lanes), len(steps), per_step), np.int32)
        checksums = np.zeros(len(steps), np.uint64)
        for index, (lane, parts) in enumerate(zip(lanes, slices, strict=True)):
            numbers = epoch.row_numbers(parts)
            shuffled = epoch.window_order(lane, window, len(numbers))
            shuffled = shuffled[skipped * per_step : (skipped + len(steps)) * per_step].reshape(len(steps), per_step)
            order[index] = shuffled + starts[index]
            checksums += row_checksums(numbers[shuffled])
        first_indices = (epoch.epoch * epoch.steps + np.array(steps)) * epoch.batch_size + lanes.start * per_step

        def make_batches(share: np.ndarray) -> list[Batch]:
            batches = to_batches(rows, order[:, share], self.schema, first_indices[share].tolist(), buffers=buffers)
            return [
                replace(batch, row_checksum=int(checksums[step])) for batch, step in zip(batches, share, strict=True)
            ]

        shares = np.array_split(np.arange(len(steps)), min(self.threads, len(steps)))
        return [batch for batches in pool.map(make_batches, shares) for batch in batches]


class EvaluationReader:
    """Reader of every row of a split once, in order; each worker reads consecutive rows.

    `batch_size` is global. All workers take the same number of steps, with batches of equal size. Batches with fewer
    rows are padded, see `Batch.num_samples`. Raises InputError if a column is missing or has a wrong type.
    """

    def __init__(self, schema: Schema, shards: Shards, batch_size: int, worker: WorkerContext | None = None) -> None:
        self.schema, self.shards = schema, shards
        worker = worker or WorkerContext()
        self.threads = worker.reader_threads(schema.data.threads)
        self.batch_size = max(1, batch_size // worker.world_size)
        self.start, self.stop = evaluation_slice(shards.rows, worker.rank, worker.world_size)
        self.steps = ceil(ceil(shards.rows / worker.world_size) / self.batch_size)
        check_columns(schema, shards, labelled=True)

    def __len__(self) -> int:
        return self.steps

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the worker."""
        first = self.start
        for rows in self._batch_rows():
            yield to_batch(rows, self.schema, first, self.batch_size)
            first += len(rows)
        for _ in range(ceil((self.stop - self.start) / self.batch_size), self.steps):
            yield to_batch(no_rows(self.schema), self.schema, first, self.batch_size)

    def _batch_rows(self) -> Iterator[Rows]:
        """Yield the worker's rows in parts of `batch_size` rows; the last part may be shorter."""
        pending: list[Rows] = []
        for rows in prefetch(self._row_groups(), self.threads):
            pending.append(rows)
            if sum(map(len, pending)) < self.batch_size:
                continue
            joined = Rows.concatenate(pending)
            stop = len(joined) - len(joined) % self.batch_size
            for start in range(0, stop, self.batch_size):
                yield joined.slice(start, start + self.batch_size)
            pending = [joined.slice(stop, len(joined))]
        rest = Rows.concatenate(pending) if pending else None
        if rest is not None and len(rest):
            yield rest

    def _row_groups(self) -> Iterator[Callable[[], Rows]]:
        """Yield a job for each row group that contains rows of the worker. The job returns these rows."""
        first = 0
        for group, rows in enumerate(self.shards.sizes.tolist()):
            start, stop = max(self.start - first, 0), min(self.stop - first, rows)
            if start < stop:
                yield partial(self._decode_part, group, start, stop)
            first += rows

    def _decode_part(self, row_group: int, start: int, stop: int) -> Rows:
        return decode_row_group(self.schema, self.shards, row_group).slice(start, stop)
