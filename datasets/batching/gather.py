"""Copying drawn rows into batches: each value is read once where Arrow decoded it and written once where it stays.

The rows come from L lanes and go to S steps, E of each lane to each step: `order` [L, S, E] int32 says which. Row b of
a step, b = l * E + e, is row `order[l, s, e]` of lane l. `sources` [columns, 3, L] are `Rows.buffers` of the lanes. A
lane is walked as a whole before the next one, so that what is read at random stays in the processor's cache. Indices
have no sign, which spares the check whether they count from the end. One call fills all columns: of few rows a call
costs more than what it does.
"""

from __future__ import annotations

import numpy as np

from asymdiffrec.datasets.decoding.native import compiled, view


@compiled
def id_totals(sources: np.ndarray, order: np.ndarray, keys: int) -> np.ndarray:
    """Room for the values of the first `keys` columns, [S]: one for each id, missing or not, those of all lists, and
    one more, for without any there would be nothing to point to."""
    lanes, steps, each = order.shape
    totals = np.ones(steps, np.int64)
    for key in range(keys):
        if sources[key, 1, 0] == 0:
            totals += lanes * each
            continue
        for lane in range(lanes):
            ends = view(sources[key, 1, lane], np.int64)
            for step in range(steps):
                drawn = order[lane, step]
                total = np.int64(0)
                for e in range(each):
                    row = np.uint32(drawn[e])
                    total += ends[row + np.uint32(1)] - ends[row]
                totals[step] += total
    return totals


@compiled
def fill_ids(
    sources: np.ndarray,
    order: np.ndarray,
    values: np.ndarray,
    ends: np.ndarray,
    lengths: np.ndarray,
    missing: np.ndarray,
) -> np.ndarray:
    """The ids and lists: what is not missing into `values` int64, for step s from place `ends[s]` on, which is moved
    behind it; their numbers into `lengths` [S, keys, B] int32; and which are missing into `missing` [S, N, B].

    Returns where the values of each key begin, [keys, S].
    """
    lanes, steps, each = order.shape
    keys = lengths.shape[1]
    starts = np.empty((keys, steps), np.int64)
    for key in range(keys):
        starts[key] = ends
        for lane in range(lanes):
            source, offsets, width = sources[key, :, lane]
            for step in range(steps):
                drawn, found = order[lane, step], values[ends[step] :]
                length, absent = lengths[step, key, lane * each :], missing[step, key, lane * each :]
                if offsets and width == 4:
                    ends[step] += _lists(view(source, np.int32), offsets, drawn, found, length, absent)
                elif offsets:
                    ends[step] += _lists(view(source, np.int64), offsets, drawn, found, length, absent)
                elif width == 4:
                    ends[step] += _ids(view(source, np.int32), drawn, found, length, absent)
                else:
                    ends[step] += _ids(view(source, np.int64), drawn, found, length, absent)
    return starts


@compiled
def _ids(rows: np.ndarray, drawn: np.ndarray, found: np.ndarray, length: np.ndarray, absent: np.ndarray) -> np.int64:
    """Of one lane and step; how many are there. An id is -1 where it is missing. Such a one is written too, and then
    overwritten."""
    count = np.uint64(0)
    for e in range(np.uint64(len(drawn))):
        row = rows[np.uint32(drawn[e])]
        there = row >= 0
        found[count] = row
        length[e] = there
        absent[e] = not there
        count += np.uint64(there)
    return np.int64(count)


@compiled
def _lists(
    rows: np.ndarray, offsets: int, drawn: np.ndarray, found: np.ndarray, length: np.ndarray, absent: np.ndarray
) -> np.int64:
    """As `_ids`; a list is missing when it is empty."""
    borders, count = view(offsets, np.int64), np.uint64(0)
    for e in range(np.uint64(len(drawn))):
        row = np.uint32(drawn[e])
        start, end = np.uint64(borders[row]), np.uint64(borders[row + np.uint32(1)])
        length[e] = end - start
        absent[e] = end == start
        for place in range(start, end):
            found[count] = rows[place]
            count += np.uint64(1)
    return np.int64(count)


@compiled
def fill_weights(
    sources: np.ndarray, offsets: np.ndarray, order: np.ndarray, weights: np.ndarray, starts: np.ndarray, mean: bool
) -> None:
    """The weights of lists, into `weights` float32 from each place of `starts` [S] on; without `sources` (0), of a
    list pooled by sum ones, of one pooled by `mean` one over its length."""
    lanes, steps, each = order.shape
    ends = starts.copy()
    for lane in range(lanes):
        given, borders = view(sources[lane], np.float32), view(offsets[lane], np.int64)
        for step in range(steps):
            found = weights[ends[step] :]
            drawn = order[lane, step]
            count = np.uint64(0)
            for e in range(each):
                row = np.uint32(drawn[e])
                start, end = np.uint64(borders[row]), np.uint64(borders[row + np.uint32(1)])
                share = np.float32(1 / (end - start) if mean and end > start else 1)
                for place in range(start, end):
                    found[count] = given[place] if sources[lane] else share
                    count += np.uint64(1)
            ends[step] += np.int64(count)


@compiled
def fill_others(
    sources: np.ndarray,
    order: np.ndarray,
    numbers: np.ndarray,
    missing: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    user: np.ndarray,
) -> None:
    """The last columns of `sources`: numbers into `numbers` [S, B, fields] float32, 0 where they are NaN, and whether
    they are into the last of `missing` [S, N, B]; then label and weight [S, B] float32, and user [S, B] int64."""
    width = numbers.shape[2]
    first, skip = len(sources) - 3 - width, missing.shape[1] - width
    for place in range(width):
        _fill_numbers(sources[first + place, 0], order, numbers, missing, place, skip + place)
    _fill_words(sources[first + width, 0], order, label, np.float32)
    _fill_words(sources[first + width + 1, 0], order, weight, np.float32)
    _fill_words(sources[first + width + 2, 0], order, user, np.int64)


@compiled
def _fill_numbers(
    sources: np.ndarray, order: np.ndarray, numbers: np.ndarray, missing: np.ndarray, place: int, field: int
) -> None:
    lanes, steps, each = order.shape
    for lane in range(lanes):
        values = view(sources[lane], np.float32)
        for step in range(steps):
            found, absent = numbers[step, lane * each :], missing[step, field, lane * each :]
            drawn = order[lane, step]
            for e in range(np.uint64(each)):
                value = values[np.uint32(drawn[e])]
                lost = np.isnan(value)
                found[e, place] = np.float32(0) if lost else value
                absent[e] = lost


@compiled
def _fill_words(sources: np.ndarray, order: np.ndarray, targets: np.ndarray, word: type) -> None:
    lanes, steps, each = order.shape
    for lane in range(lanes):
        values = view(sources[lane], word)
        for step in range(steps):
            found, drawn = targets[step, lane * each :], order[lane, step]
            for e in range(np.uint64(each)):
                found[e] = values[np.uint32(drawn[e])]
