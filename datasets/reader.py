"""Batches from shards: without end and in a drawn order for training, every row once for evaluation."""

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
from asymdiffrec.datasets.memory_check import require_memory
from asymdiffrec.datasets.prefetch import ahead
from asymdiffrec.datasets.row_group_cache import OpenRowGroups, decode_rows
from asymdiffrec.datasets.sample_order import Epoch, evaluation_slice, ledgers
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards


@dataclass(frozen=True)
class WorkerContext:
    """The rank of a worker, the number of workers, and the number of workers on its host."""

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    def reader_threads(self, threads: int | None) -> int:
        """Return `threads`, or if it is None this worker's share of the host's cores, at least 1."""
        return threads or max(1, len(os.sched_getaffinity(0)) // self.local_world_size)


@dataclass(frozen=True)
class Position:
    """The place of training: the next batch is number `step` of epoch `epoch`."""

    epoch: int = 0
    step: int = 0


def epoch_of(schema: Schema, shards: Shards, seed: int, batch_size: int, number: int = 0) -> Epoch:
    """The order of one epoch of training."""
    return Epoch(shards.sizes, seed, number, batch_size, schema.data.lanes, schema.data.window)


class TrainingReader:
    """The training batches of one worker, in the order of `order.py`.

    `batch_size` is global: each batch that a worker gets has batch_size / workers rows. Batch k of an epoch, put
    together from all workers in their order, is the same whatever their number. Raises InputError where the sizes do
    not fit each other or the data.
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
                f"{self.worker.world_size} workers do not divide data.lanes ({lanes}); choose a number that does"
            )
        self.steps_per_epoch = self._epoch(0).steps
        if not self.steps_per_epoch:
            raise InputError(
                f"the training split has {shards.rows} rows, fewer than one batch of {batch_size}; "
                "lower train.batch_size"
            )
        check_columns(schema, shards, labelled=True)
        held = (lanes // self.worker.world_size + self.threads) * self.worker.local_world_size
        require_memory(shards, schema.columns(labelled=True), held)

    def position(self, step: int) -> Position:
        """The position after `step` batches since the start of the run."""
        return Position(*divmod(step, self.steps_per_epoch))

    def batches(self, position: Position, pinned: bool = False) -> Generator[Batch]:
        """Batches from a position on, without end, made one window ahead; in page-locked memory where `pinned`.

        Raises InputError with the place where a row holds what its field does not allow.
        """
        with ThreadPoolExecutor(self.threads, thread_name_prefix="reader") as pool:
            for window in ahead(self._windows(position, BufferPool(pinned), pool), 1):
                while window:  # a batch that has been given away is not held
                    yield window.pop(0)

    def _epoch(self, number: int) -> Epoch:
        return epoch_of(self.schema, self.shards, self.seed, self.batch_size, number)

    def _windows(
        self, position: Position, buffers: BufferPool, pool: ThreadPoolExecutor
    ) -> Iterator[Callable[[], list[Batch]]]:
        groups = OpenRowGroups(self.schema, self.shards, int(self.schema.data.cache * 2**30), pool)
        first = position.step
        for number in count(position.epoch):
            epoch = self._epoch(number)
            for start in range(0, epoch.steps, epoch.steps_per_window):
                steps = range(max(first, start), min(start + epoch.steps_per_window, epoch.steps))
                if steps:
                    yield partial(self._window, epoch, steps, groups, buffers, pool)
            first = 0

    def _window(
        self, epoch: Epoch, steps: range, groups: OpenRowGroups, buffers: BufferPool, pool: ThreadPoolExecutor
    ) -> list[Batch]:
        """The batches of some steps of one window."""
        per_worker = epoch.lanes // self.worker.world_size
        lanes = range(self.worker.rank * per_worker, (self.worker.rank + 1) * per_worker)
        window, before = divmod(steps.start, epoch.steps_per_window)
        slices = [epoch.window_slices(lane, window) for lane in lanes]
        rows, starts = zip(*groups.windows(slices), strict=True)
        each = epoch.rows_per_step
        order = np.empty((len(lanes), len(steps), each), np.int32)
        seen = np.zeros(len(steps), np.uint64)
        for place, (lane, parts) in enumerate(zip(lanes, slices, strict=True)):
            numbers = epoch.numbers(parts)
            drawn = epoch.window_order(lane, window, len(numbers))
            drawn = drawn[before * each : (before + len(steps)) * each].reshape(len(steps), each)
            order[place] = drawn + starts[place]
            seen += ledgers(numbers[drawn])
        index = (epoch.epoch * epoch.steps + np.array(steps)) * epoch.batch_size + lanes.start * each

        def make(share: np.ndarray) -> list[Batch]:
            batches = to_batches(rows, order[:, share], self.schema, index[share].tolist(), buffers=buffers)
            return [replace(batch, ledger=int(seen[step])) for batch, step in zip(batches, share, strict=True)]

        shares = np.array_split(np.arange(len(steps)), min(self.threads, len(steps)))
        return [batch for batches in pool.map(make, shares) for batch in batches]


class EvaluationReader:
    """Every row of a split once, in order, a run of neighbouring rows for each worker.

    `batch_size` is global. All workers take the same number of steps, with batches of equal size: the last ones are
    padded with rows that do not count.
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
        at = self.start
        for rows in self._cut():
            yield to_batch(rows, self.schema, at, self.batch_size)
            at += len(rows)
        for _ in range(ceil((self.stop - self.start) / self.batch_size), self.steps):
            yield to_batch(no_rows(self.schema), self.schema, at, self.batch_size)

    def _cut(self) -> Iterator[Rows]:
        """The worker's rows in pieces of `batch_size`, the last one shorter."""
        held: list[Rows] = []
        for rows in ahead(self._row_groups(), self.threads):
            held.append(rows)
            if sum(map(len, held)) < self.batch_size:
                continue
            joined = Rows.concatenate(held)
            whole = len(joined) - len(joined) % self.batch_size
            for start in range(0, whole, self.batch_size):
                yield joined.slice(start, start + self.batch_size)
            held = [joined.slice(whole, len(joined))]
        rest = Rows.concatenate(held) if held else None
        if rest is not None and len(rest):
            yield rest

    def _row_groups(self) -> Iterator[Callable[[], Rows]]:
        first = 0
        for group, rows in enumerate(self.shards.sizes.tolist()):
            start, stop = max(self.start - first, 0), min(self.stop - first, rows)
            if start < stop:
                yield partial(self._part, group, start, stop)
            first += rows

    def _part(self, row_group: int, start: int, stop: int) -> Rows:
        return decode_rows(self.schema, self.shards, row_group).slice(start, stop)
