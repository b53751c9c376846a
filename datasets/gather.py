"""Copying drawn rows into batches: each value is read once where Arrow decoded it and written once where it stays.

The rows come from L lanes and go to S steps, E of each lane to each step: `order` [L, S, E] int32 says which. Row b of
a step, b = l * E + e, is row `order[l, s, e]` of lane l. `sources` [L] and `targets` [S] are addresses. A lane is
walked as a whole before the next one, so that what is read at random stays in the processor's cache. Indices have no
sign, which spares the check whether they count from the end.
"""

from __future__ import annotations

import numpy as np

from asymdiffrec.datasets.native import compiled, view


@compiled
def id_lengths(
    sources: np.ndarray, order: np.ndarray, targets: np.ndarray, start: int, counts: np.ndarray, word: type
) -> None:
    """1 or 0 for each row that has the id or has not, int32 from place `start` of each target; sums in counts [S, L].

    The sources are of the integer type `word`, -1 where an id is missing.
    """
    lanes, steps, each = order.shape
    for lane in range(lanes):
        ids = view(sources[lane], word)
        for step in range(steps):
            lengths = view(targets[step] + 4 * (start + lane * each), np.int32)
            drawn = order[lane, step]
            present = np.int32(0)
            for e in range(each):
                length = np.int32(ids[np.uint32(drawn[e])] >= 0)
                lengths[e] = length
                present += length
            counts[step, lane] = present


@compiled
def list_lengths(offsets: np.ndarray, order: np.ndarray, targets: np.ndarray, start: int, counts: np.ndarray) -> None:
    """The lengths of the lists, int32 from place `start` of each target, and their sums in counts [S, L]."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        ends = view(offsets[lane], np.int64)
        for step in range(steps):
            lengths = view(targets[step] + 4 * (start + lane * each), np.int32)
            drawn = order[lane, step]
            total = np.int64(0)
            for e in range(each):
                row = np.uint32(drawn[e])
                length = ends[row + np.uint32(1)] - ends[row]
                lengths[e] = length
                total += length
            counts[step, lane] = total


@compiled
def fill_ids(sources: np.ndarray, order: np.ndarray, targets: np.ndarray, places: np.ndarray, word: type) -> None:
    """The ids that are not missing, int64 from place `places[s, l]` of each target.

    One that is missing is written too, and then overwritten: a target has room for one more than it will hold.
    """
    lanes, steps, each = order.shape
    for lane in range(lanes):
        ids = view(sources[lane], word)
        for step in range(steps):
            found = view(targets[step] + 8 * places[step, lane], np.int64)
            drawn = order[lane, step]
            count = np.uint64(0)
            for e in range(each):
                row = ids[np.uint32(drawn[e])]
                found[count] = row
                count += np.uint64(row >= 0)


@compiled
def fill_lists(
    sources: np.ndarray, offsets: np.ndarray, order: np.ndarray, targets: np.ndarray, places: np.ndarray, word: type
) -> None:
    """The ids of the lists, int64 from place `places[s, l]` of each target."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        ids, ends = view(sources[lane], word), view(offsets[lane], np.int64)
        for step in range(steps):
            found = view(targets[step] + 8 * places[step, lane], np.int64)
            drawn = order[lane, step]
            count = np.uint64(0)
            for e in range(each):
                row = np.uint32(drawn[e])
                for place in range(np.uint64(ends[row]), np.uint64(ends[row + np.uint32(1)])):
                    found[count] = ids[place]
                    count += np.uint64(1)


@compiled
def fill_weights(
    sources: np.ndarray, offsets: np.ndarray, order: np.ndarray, targets: np.ndarray, places: np.ndarray, mean: bool
) -> None:
    """The weights of lists, float32 from place `places[s, l]` of each target; without `sources` (0), of a list pooled
    by sum ones, of one pooled by `mean` one over its length."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        weights, ends = view(sources[lane], np.float32), view(offsets[lane], np.int64)
        for step in range(steps):
            found = view(targets[step] + 4 * places[step, lane], np.float32)
            drawn = order[lane, step]
            count = np.uint64(0)
            for e in range(each):
                row = np.uint32(drawn[e])
                start, end = np.uint64(ends[row]), np.uint64(ends[row + np.uint32(1)])
                share = np.float32(1 / (end - start) if mean and end > start else 1)
                for place in range(start, end):
                    found[count] = weights[place] if sources[lane] else share
                    count += np.uint64(1)


@compiled
def fill_numbers(
    sources: np.ndarray, order: np.ndarray, numbers: np.ndarray, missing: np.ndarray, place: int, width: int, skip: int
) -> None:
    """A number field: column `place` of targets `numbers` [B, width] float32, 0 where it is NaN, and column
    `skip + place` of targets `missing` [B, skip + width] bool, whether it is."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        values = view(sources[lane], np.float32)
        for step in range(steps):
            found, absent = view(numbers[step], np.float32), view(missing[step], np.uint8)
            drawn = order[lane, step]
            for e in range(each):
                row = lane * each + e
                value = values[np.uint32(drawn[e])]
                lost = np.isnan(value)
                found[row * width + place] = np.float32(0) if lost else value
                absent[row * (skip + width) + skip + place] = lost


@compiled
def fill_words(sources: np.ndarray, order: np.ndarray, targets: np.ndarray, word: type) -> None:
    """A column of values as they are, whatever they mean, `word` being an integer of their size."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        values = view(sources[lane], word)
        for step in range(steps):
            found = view(targets[step] + lane * each * values.itemsize, word)
            drawn = order[lane, step]
            for e in range(each):
                found[e] = values[np.uint32(drawn[e])]


@compiled
def mark_missing(lengths: np.ndarray, missing: np.ndarray, keys: int, rows: int, width: int) -> None:
    """Whether the bags are empty: from `lengths` [keys, rows] int32 to the first columns of `missing` [rows, width]."""
    block = 64  # so many rows stay in the cache while the keys are walked
    for step in range(len(lengths)):
        counts, absent = view(lengths[step], np.int32), view(missing[step], np.uint8)
        for start in range(0, rows, block):
            for key in range(keys):
                for row in range(np.uint64(start), np.uint64(min(start + block, rows))):
                    absent[row * np.uint64(width) + np.uint64(key)] = counts[np.uint64(key * rows) + row] == 0
