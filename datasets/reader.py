"""Batches from shards: without end and in a drawn order for training, every row once for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import ceil
from typing import TypeVar

import numpy as np

from asymdiffrec.datasets.batch import Batch, to_batch
from asymdiffrec.datasets.check import check_columns, column_names
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.order import Epoch, evaluation_slice
from asymdiffrec.datasets.rows import Rows, decode
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards

T = TypeVar("T")


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this one is."""

    rank: int = 0
    count: int = 1


@dataclass(frozen=True)
class Position:
    """The place of training: the next batch is number `step` of epoch `epoch`."""

    epoch: int = 0
    step: int = 0


class TrainingReader:
    """The training batches of one worker, in the order of `order.py`.

    `batch_size` is global: each batch that a worker gets has batch_size / workers rows. Batch k of an epoch, put
    together from all workers in their order, is the same whatever their number. Raises InputError where the sizes do
    not fit each other or the data.
    """

    def __init__(
        self, schema: Schema, shards: Shards, seed: int, batch_size: int, worker: Worker | None = None
    ) -> None:
        self.schema, self.shards, self.seed, self.batch_size = schema, shards, seed, batch_size
        self.worker = worker or Worker()
        lanes = schema.data.lanes
        if batch_size % lanes:
            raise InputError(f"train.batch_size is {batch_size}; it must be a multiple of data.lanes ({lanes})")
        if lanes % self.worker.count:
            raise InputError(
                f"{self.worker.count} workers do not divide data.lanes ({lanes}); choose a number that does"
            )
        self.steps_per_epoch = self._epoch(0).steps
        if not self.steps_per_epoch:
            raise InputError(
                f"the training split has {shards.rows} rows, fewer than one batch of {batch_size}; "
                "lower train.batch_size"
            )
        check_columns(schema, shards, labelled=True)

    def position(self, step: int) -> Position:
        """The position after `step` batches since the start of the run."""
        return Position(*divmod(step, self.steps_per_epoch))

    def batches(self, position: Position) -> Iterator[Batch]:
        """Batches from a position on, without end, decoded one window ahead in a thread.

        Raises InputError with the place where a row holds what its field does not allow.
        """
        return (batch for window in _ahead(self._windows(position)) for batch in window)

    def _epoch(self, epoch: int) -> Epoch:
        data = self.schema.data
        return Epoch(self.shards.sizes, self.seed, epoch, self.batch_size, data.lanes, data.window)

    def _windows(self, position: Position) -> Iterator[Callable[[], list[Batch]]]:
        open_groups: dict[int, Rows] = {}
        first = position.step
        for number in count(position.epoch):
            epoch = self._epoch(number)
            for start in range(0, epoch.steps, epoch.steps_per_window):
                if first < start + epoch.steps_per_window:
                    yield partial(self._window, epoch, start // epoch.steps_per_window, max(first, start), open_groups)
            first = 0

    def _window(self, epoch: Epoch, window: int, first: int, open_groups: dict[int, Rows]) -> list[Batch]:
        """The batches of a window from step `first` on. `open_groups` keeps the row groups that the window touches."""
        per_worker = epoch.lanes // self.worker.count
        lanes = range(self.worker.rank * per_worker, (self.worker.rank + 1) * per_worker)
        slices = [part for lane in lanes for part in epoch.window_slices(lane, window)]
        groups = {
            group: open_groups[group] if group in open_groups else _decode(self.schema, self.shards, group)
            for group in dict.fromkeys(part.row_group for part in slices)
        }
        open_groups.clear()
        open_groups.update(groups)
        rows = Rows.concatenate([groups[part.row_group].slice(part.start, part.stop) for part in slices])

        lane_rows = len(rows) // len(lanes)
        orders = np.stack([epoch.window_order(lane, window, lane_rows) for lane in lanes])
        places = orders + lane_rows * np.arange(len(lanes))[:, None]
        start = window * epoch.steps_per_window
        steps = range(first, min(start + epoch.steps_per_window, epoch.steps))
        each = epoch.rows_per_step
        places = places[:, (first - start) * each : (steps.stop - start) * each].reshape(len(lanes), len(steps), each)
        index = (epoch.epoch * epoch.steps + first) * epoch.batch_size + lanes.start * each
        return [
            to_batch(rows.take(places[:, k].reshape(-1)), self.schema, index + k * epoch.batch_size)
            for k in range(len(steps))
        ]


class EvaluationReader:
    """Every row of a split once, in order, a run of neighbouring rows for each worker.

    `batch_size` is global. All workers take the same number of steps, with batches of equal size: the last ones are
    padded with rows that do not count.
    """

    def __init__(self, schema: Schema, shards: Shards, batch_size: int, worker: Worker | None = None) -> None:
        self.schema, self.shards = schema, shards
        worker = worker or Worker()
        self.batch_size = max(1, batch_size // worker.count)
        self.start, self.stop = evaluation_slice(shards.rows, worker.rank, worker.count)
        self.steps = ceil(ceil(shards.rows / worker.count) / self.batch_size)
        check_columns(schema, shards, labelled=True)

    def __len__(self) -> int:
        return self.steps

    def batches(self) -> Iterator[Batch]:
        at = self.start
        for rows in self._cut():
            yield to_batch(rows, self.schema, at, self.batch_size)
            at += len(rows)
        for _ in range(ceil((self.stop - self.start) / self.batch_size), self.steps):
            yield to_batch(Rows.empty(self.schema), self.schema, at, self.batch_size)

    def _cut(self) -> Iterator[Rows]:
        """The worker's rows in pieces of `batch_size`, the last one shorter."""
        held = Rows.empty(self.schema)
        for rows in _ahead(self._row_groups()):
            held = Rows.concatenate([held, rows])
            whole = len(held) - len(held) % self.batch_size
            for start in range(0, whole, self.batch_size):
                yield held.slice(start, start + self.batch_size)
            held = held.slice(whole, len(held))
        if len(held):
            yield held

    def _row_groups(self) -> Iterator[Callable[[], Rows]]:
        first = 0
        for group, rows in enumerate(self.shards.sizes.tolist()):
            start, stop = max(self.start - first, 0), min(self.stop - first, rows)
            if start < stop:
                yield partial(_decode, self.schema, self.shards, group, start, stop)
            first += rows


def _decode(schema: Schema, shards: Shards, row_group: int, start: int = 0, stop: int | None = None) -> Rows:
    table = shards.read(row_group, column_names(schema, labelled=True))
    rows = decode(table, schema, shards.place(row_group), labelled=True)
    return rows if stop is None else rows.slice(start, stop)


def _ahead(jobs: Iterator[Callable[[], T]]) -> Iterator[T]:
    """The results of the jobs in order, each started in a thread while the one before it is consumed."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        waiting = None
        for job in jobs:
            started = pool.submit(job)
            if waiting is not None:
                yield waiting.result()
            waiting = started
        if waiting is not None:
            yield waiting.result()
