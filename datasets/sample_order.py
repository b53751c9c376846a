"""Which rows make which batch: pure functions of the row groups' sizes and a few integers.

An epoch is one long sequence of rows: its row groups in an order drawn from (seed, epoch), starting at a drawn row and
going round. The sequence is cut into `lanes` intervals of equal length. A batch takes `batch_size / lanes` rows from
every lane, and within a window of a lane the rows come in a drawn order. A worker owns a run of neighbouring lanes. So
batch k of an epoch holds the same rows whatever the number of workers, and the place of training is two integers:
(epoch, k). The rows that fill no batch, at the ends of the lanes and of the sequence, are other ones each epoch.

    sequence   |-- lane 0 --|-- lane 1 --|-- lane 2 --|-- lane 3 --|..
    batch k     ^^ rows       ^^ rows       ^^ rows      ^^ rows
                [ worker 0 of 2           ][ worker 1 of 2         ]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from asymdiffrec.datasets.decoding.hashing import splitmix64


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of a row group."""

    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Epoch:
    """The order of one epoch over row groups of `sizes` rows. `batch_size` is global and a multiple of `lanes`."""

    sizes: np.ndarray
    seed: int
    epoch: int
    batch_size: int
    lanes: int
    window: int

    @property
    def lane_rows(self) -> int:
        return int(self.sizes.sum()) // self.lanes

    @property
    def rows_per_step(self) -> int:
        """Rows that a batch takes from each lane."""
        return self.batch_size // self.lanes

    @property
    def steps(self) -> int:
        """Batches of the epoch: rows // batch_size."""
        return self.lane_rows // self.rows_per_step

    @property
    def steps_per_window(self) -> int:
        """A window holds whole steps, at least one, so that no batch straddles two."""
        return max(1, self.window // self.rows_per_step)

    @cached_property
    def _row_groups(self) -> np.ndarray:
        return np.argsort(_draws(len(self.sizes), self.seed, self.epoch), kind="stable")

    @cached_property
    def _starts(self) -> np.ndarray:
        """Place in the sequence of each permuted row group's first row, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.sizes[self._row_groups])])

    @cached_property
    def _shift(self) -> int:
        return int(_draws(1, self.seed, self.epoch, 1)[0] % np.uint64(self.sizes.sum()))

    def window_slices(self, lane: int, window: int) -> list[Slice]:
        """The rows of one window of one lane before they are permuted, as slices of row groups."""
        rows = self.steps_per_window * self.rows_per_step
        start = lane * self.lane_rows + window * rows
        stop = lane * self.lane_rows + min((window + 1) * rows, self.lane_rows)
        total = int(self._starts[-1])
        start, stop = start + self._shift, stop + self._shift
        if start < total < stop:
            return self._slices(start, total) + self._slices(0, stop - total)
        return self._slices(start % total, (stop - 1) % total + 1)

    def _slices(self, start: int, stop: int) -> list[Slice]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        return [
            Slice(
                int(self._row_groups[place]),
                max(start - int(self._starts[place]), 0),
                min(stop, int(self._starts[place + 1])) - int(self._starts[place]),
            )
            for place in range(first, last)
        ]

    def numbers(self, slices: Sequence[Slice]) -> np.ndarray:
        """The numbers of their rows in the whole split, uint64."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        parts = [starts[part.row_group] + np.arange(part.start, part.stop) for part in slices]
        return np.concatenate(parts).astype(np.uint64)

    def batch(self, step: int) -> np.ndarray:
        """The numbers in the split of the rows of a batch, in its order, uint64 [batch_size]."""
        window, place = divmod(step, self.steps_per_window)
        own = slice(place * self.rows_per_step, (place + 1) * self.rows_per_step)

        def taken(lane: int) -> np.ndarray:
            numbers = self.numbers(self.window_slices(lane, window))
            return numbers[self.window_order(lane, window, len(numbers))[own]]

        return np.concatenate([taken(lane) for lane in range(self.lanes)])

    def window_order(self, lane: int, window: int, rows: int) -> np.ndarray:
        """The drawn order of a window's rows: a permutation of range(rows), int64."""
        draws = _draws(rows, self.seed, self.epoch, 2, lane, window)
        low = np.uint64((1 << rows.bit_length()) - 1)
        # The draws in order, each with its place in its low bits: several times as fast as sorting the places by them.
        return (np.sort((draws & ~low) | np.arange(rows, dtype=np.uint64)) & low).astype(np.int64)


def ledgers(numbers: np.ndarray) -> np.ndarray:
    """Which rows [..., R] these are, in one uint64 each [...]: the sum modulo 2^64 of SplitMix64 of their numbers.

    Their order does not matter, and the ledgers of parts add up. A row that is lost or there twice changes it.
    """
    return splitmix64(numbers).sum(axis=-1, dtype=np.uint64)


def _draws(count: int, *key: int) -> np.ndarray:
    """`count` uint64 random numbers of a key of integers: SplitMix64 of the place plus the key folded through it."""
    state = np.zeros(1, dtype=np.uint64)
    for word in key:
        state = splitmix64(state ^ np.uint64(word % 2**64))
    return splitmix64(np.arange(count, dtype=np.uint64) + state)


def evaluation_slice(rows: int, worker: int, workers: int) -> tuple[int, int]:
    """Rows [start, stop) that a worker evaluates: neighbouring intervals that differ by at most one row in length."""
    return rows * worker // workers, rows * (worker + 1) // workers
