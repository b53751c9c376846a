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
def list_totals(offsets: np.ndarray, order: np.ndarray, totals: np.ndarray) -> None:
    """Adds the number of ids in the lists of each step to totals [S]."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        ends = view(offsets[lane], np.int64)
        for step in range(steps):
            drawn = order[lane, step]
            total = np.int64(0)
            for e in range(each):
                row = np.uint32(drawn[e])
                total += ends[row + np.uint32(1)] - ends[row]
            totals[step] += total


@compiled
def fill_ids(
    sources: np.ndarray, order: np.ndarray, ids: np.ndarray, lengths: np.ndarray, missing: np.ndarray, word: type
) -> None:
    """The ids that are not missing, int64, from each address of `ids` [S] on, which is moved behind them; 1 or 0 for
    each row that has one or has not, int32 from `lengths` [S] on; and whether it has not, from `missing` [S] on.

    The sources are of the integer type `word`, -1 where an id is missing. Such a one is written too, and then
    overwritten: a target has room for one more than it will hold.
    """
    lanes, steps, each = order.shape
    for lane in range(lanes):
        rows = view(sources[lane], word)
        for step in range(steps):
            found = view(ids[step], np.int64)
            length = view(lengths[step] + 4 * lane * each, np.int32)
            absent = view(missing[step] + lane * each, np.uint8)
            drawn = order[lane, step]
            count = np.uint64(0)
            for e in range(np.uint64(each)):
                row = rows[np.uint32(drawn[e])]
                there = row >= 0
                found[count] = row
                length[e] = there
                absent[e] = not there
                count += np.uint64(there)
            ids[step] += 8 * np.int64(count)


@compiled
def fill_lists(
    sources: np.ndarray,
    offsets: np.ndarray,
    order: np.ndarray,
    ids: np.ndarray,
    lengths: np.ndarray,
    missing: np.ndarray,
    word: type,
) -> None:
    """As `fill_ids` does, for lists; one is missing when it is empty."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        rows, ends = view(sources[lane], word), view(offsets[lane], np.int64)
        for step in range(steps):
            found = view(ids[step], np.int64)
            length = view(lengths[step] + 4 * lane * each, np.int32)
            absent = view(missing[step] + lane * each, np.uint8)
            drawn = order[lane, step]
            count = np.uint64(0)
            for e in range(np.uint64(each)):
                row = np.uint32(drawn[e])
                start, end = np.uint64(ends[row]), np.uint64(ends[row + np.uint32(1)])
                length[e] = end - start
                absent[e] = end == start
                for place in range(start, end):
                    found[count] = rows[place]
                    count += np.uint64(1)
            ids[step] += 8 * np.int64(count)


@compiled
def fill_weights(sources: np.ndarray, offsets: np.ndarray, order: np.ndarray, targets: np.ndarray, mean: bool) -> None:
    """The weights of lists, float32 from each address of `targets` [S] on, which is moved behind them; without
    `sources` (0), of a list pooled by sum ones, of one pooled by `mean` one over its length."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        weights, ends = view(sources[lane], np.float32), view(offsets[lane], np.int64)
        for step in range(steps):
            found = view(targets[step], np.float32)
            drawn = order[lane, step]
            count = np.uint64(0)
            for e in range(each):
                row = np.uint32(drawn[e])
                start, end = np.uint64(ends[row]), np.uint64(ends[row + np.uint32(1)])
                share = np.float32(1 / (end - start) if mean and end > start else 1)
                for place in range(start, end):
                    found[count] = weights[place] if sources[lane] else share
                    count += np.uint64(1)
            targets[step] += 4 * np.int64(count)


@compiled
def fill_numbers(
    sources: np.ndarray, order: np.ndarray, numbers: np.ndarray, missing: np.ndarray, place: int, width: int
) -> None:
    """A number field: column `place` of targets `numbers` [B, width] float32, 0 where it is NaN, and whether it is,
    from `missing` [S] on."""
    lanes, steps, each = order.shape
    for lane in range(lanes):
        values = view(sources[lane], np.float32)
        for step in range(steps):
            found, absent = view(numbers[step], np.float32), view(missing[step] + lane * each, np.uint8)
            drawn = order[lane, step]
            for e in range(np.uint64(each)):
                value = values[np.uint32(drawn[e])]
                lost = np.isnan(value)
                found[(lane * each + e) * width + place] = np.float32(0) if lost else value
                absent[e] = lost


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
