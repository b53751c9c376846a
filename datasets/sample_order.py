"""The order of training samples: pure functions of the row groups' sizes and a few integers.

An epoch is one long sequence of rows. Its row groups are in a random order, a function of (seed, epoch). It starts at
a random row and wraps around. The sequence is cut into `lanes` intervals of equal length. A batch takes
`batch_size / lanes` rows from every lane. The rows of a lane are shuffled within windows. Each worker reads some
neighbouring lanes. So batch k of an epoch holds the same rows for any number of workers, and a position in training is
two integers: (epoch, k). The last rows of a lane, and of the sequence, are left out if they do not fill a batch. Each
epoch leaves out different rows.

    sequence   |-- lane 0 --|-- lane 1 --|-- lane 2 --|-- lane 3 --|..
    batch k     ^^ rows       ^^ rows       ^^ rows      ^^ rows
                [ worker 0 of 2           ][ worker 1 of 2         ]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from asymdiffrec.datasets.decoding.id_hash import splitmix64


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of a row group."""

    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Epoch:
    """The order of the rows in one epoch.

    sizes: number of rows of each row group.
    batch_size: global batch size, a multiple of `lanes`.
    window: number of rows of a lane that are shuffled together.
    """

    sizes: np.ndarray
    seed: int
    epoch: int
    batch_size: int
    lanes: int
    window: int

    @property
    def lane_rows(self) -> int:
        """Number of rows of a lane."""
        return int(self.sizes.sum()) // self.lanes

    @property
    def rows_per_step(self) -> int:
        """Number of rows that a batch takes from each lane."""
        return self.batch_size // self.lanes

    @property
    def steps(self) -> int:
        """Number of batches of the epoch."""
        return self.lane_rows // self.rows_per_step

    @property
    def steps_per_window(self) -> int:
        """Number of batches of a window, at least 1. No batch contains rows of two windows."""
        return max(1, self.window // self.rows_per_step)

    @cached_property
    def _row_groups(self) -> np.ndarray:
        """The row groups in the order of the sequence."""
        return np.argsort(_random_words(len(self.sizes), self.seed, self.epoch), kind="stable")

    @cached_property
    def _starts(self) -> np.ndarray:
        """Index in the sequence of the first row of each entry of `_row_groups`, then the length of the sequence."""
        return np.concatenate([[0], np.cumsum(self.sizes[self._row_groups])])

    @cached_property
    def _shift(self) -> int:
        """Index in the sequence of the first row of lane 0."""
        return int(_random_words(1, self.seed, self.epoch, 1)[0] % np.uint64(self.sizes.sum()))

    def window_slices(self, lane: int, window: int) -> list[Slice]:
        """Return the rows of one window of a lane in the order before shuffling, as slices of row groups."""
        rows = self.steps_per_window * self.rows_per_step
        start = lane * self.lane_rows + window * rows
        stop = lane * self.lane_rows + min((window + 1) * rows, self.lane_rows)
        total = int(self._starts[-1])
        start, stop = start + self._shift, stop + self._shift
        if start < total < stop:
            return self._slices(start, total) + self._slices(0, stop - total)
        return self._slices(start % total, (stop - 1) % total + 1)

    def _slices(self, start: int, stop: int) -> list[Slice]:
        """Return rows [start, stop) of the sequence as slices of row groups."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        return [
            Slice(
                int(self._row_groups[index]),
                max(start - int(self._starts[index]), 0),
                min(stop, int(self._starts[index + 1])) - int(self._starts[index]),
            )
            for index in range(first, last)
        ]

    def row_numbers(self, slices: Sequence[Slice]) -> np.ndarray:
        """Return the row numbers of the rows in `slices`, counted from the start of the split, uint64."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        parts = [starts[part.row_group] + np.arange(part.start, part.stop) for part in slices]
        return np.concatenate(parts).astype(np.uint64)

    def batch_row_numbers(self, step: int) -> np.ndarray:
        """Return the row numbers of a batch's rows, counted from the start of the split, uint64 [batch_size]."""
        window, step_in_window = divmod(step, self.steps_per_window)
        part = slice(step_in_window * self.rows_per_step, (step_in_window + 1) * self.rows_per_step)

        def of_lane(lane: int) -> np.ndarray:
            numbers = self.row_numbers(self.window_slices(lane, window))
            return numbers[self.window_order(lane, window, len(numbers))[part]]

        return np.concatenate([of_lane(lane) for lane in range(self.lanes)])

    def window_order(self, lane: int, window: int, rows: int) -> np.ndarray:
        """Return the shuffled order of a window's rows: a permutation of range(rows), int64."""
        words = _random_words(rows, self.seed, self.epoch, 2, lane, window)
        low_bits = np.uint64((1 << rows.bit_length()) - 1)
        # Write the row into the low bits of the random words and sort them: several times as fast as an argsort.
        return (np.sort((words & ~low_bits) | np.arange(rows, dtype=np.uint64)) & low_bits).astype(np.int64)


def row_checksums(row_numbers: np.ndarray) -> np.ndarray:
    """Return the checksum of each set of R rows, uint64 [...], given their row numbers in the split, uint64 [..., R].

    The checksum is the sum modulo 2^64 of SplitMix64 of the row numbers. The order of the rows does not matter, and the
    checksum of a union of disjoint sets is the sum of their checksums. A lost or repeated row changes the checksum.
    """
    return splitmix64(row_numbers).sum(axis=-1, dtype=np.uint64)


def _random_words(count: int, *key: int) -> np.ndarray:
    """Return `count` pseudo-random uint64 for a key of integers: SplitMix64 of (index + hash of the key)."""
    state = np.zeros(1, dtype=np.uint64)
    for word in key:
        state = splitmix64(state ^ np.uint64(word % 2**64))
    return splitmix64(np.arange(count, dtype=np.uint64) + state)


def evaluation_slice(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return (start, stop) of the rows [start, stop) that a rank evaluates.

    The numbers of rows of two ranks differ by at most one.
    """
    return rows * rank // world_size, rows * (rank + 1) // world_size
