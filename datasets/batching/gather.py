"""Compiled loops that copy shuffled rows into batches; each value is read once and written once.

The rows come from L lanes; each of the S steps takes E rows of each lane. `order` [L, S, E] int32 holds the row numbers
within a lane: sample b = l * E + e of step s is row `order[l, s, e]` of lane l. `sources` [columns, 3, L] int64 is
`Rows.buffers` of the lanes. The loops fill all steps of one lane before the next lane, so that the memory that is read
in random order stays in the processor's cache. Indices are unsigned, which saves the test for negative indices. One
call fills all columns, because with few rows a call costs more time than its work.
"""

from __future__ import annotations

import numpy as np

from asymdiffrec.datasets.decoding.native import compiled, view


@compiled
def max_values(sources: np.ndarray, order: np.ndarray, keys: int) -> np.ndarray:
    """Return the maximum number of values of the first `keys` columns in each step, [S], plus one.

    An id field counts one value per sample, even if it is missing. A list field counts all values of its lists. The
    additional value gives the memory of a step without values an address.
    """
    lanes, steps, each = order.shape
    totals = np.ones(steps, np.int64)
    for key in range(keys):
        if sources[key, 1, 0] == 0:
            totals += lanes * each
            continue
        for lane in range(lanes):
            offsets = view(sources[key, 1, lane], np.int64)
            for step in range(steps):
                rows = order[lane, step]
                total = np.int64(0)
                for e in range(each):
                    row = np.uint32(rows[e])
                    total += offsets[row + np.uint32(1)] - offsets[row]
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
    """Copy the ids of the sparse fields.

    values: int64, gets the ids of step s that are not missing, starting at index `ends[s]`.
    ends: [S], gets the index after the last id of each step.
    lengths: [S, keys, B] int32, gets the number of ids of each sample.
    missing: [S, N, B] bool, gets True where a field is missing.

    Returns the index in `values` of the first id of each key and step, [keys, S].
    """
    lanes, steps, each = order.shape
    keys = lengths.shape[1]
    starts = np.empty((keys, steps), np.int64)
    for key in range(keys):
        starts[key] = ends
        for lane in range(lanes):
            source, offsets, width = sources[key, :, lane]
            for step in range(steps):
                rows, out = order[lane, step], values[ends[step] :]
                length, absent = lengths[step, key, lane * each :], missing[step, key, lane * each :]
                if offsets and width == 4:
                    ends[step] += _copy_lists(view(source, np.int32), offsets, rows, out, length, absent)
                elif offsets:
                    ends[step] += _copy_lists(view(source, np.int64), offsets, rows, out, length, absent)
                elif width == 4:
                    ends[step] += _copy_ids(view(source, np.int32), rows, out, length, absent)
                else:
                    ends[step] += _copy_ids(view(source, np.int64), rows, out, length, absent)
    return starts


@compiled
def _copy_ids(ids: np.ndarray, rows: np.ndarray, out: np.ndarray, length: np.ndarray, absent: np.ndarray) -> np.int64:
    """Copy the ids of one lane and step; return their number.

    A missing id, -1, is written too, because this needs no branch; the next id overwrites it.
    """
    count = np.uint64(0)
    for e in range(np.uint64(len(rows))):
        identity = ids[np.uint32(rows[e])]
        is_present = identity >= 0
        out[count] = identity
        length[e] = is_present
        absent[e] = not is_present
        count += np.uint64(is_present)
    return np.int64(count)


@compiled
def _copy_lists(
    ids: np.ndarray, offsets: int, rows: np.ndarray, out: np.ndarray, length: np.ndarray, absent: np.ndarray
) -> np.int64:
    """Copy the id lists of one lane and step; return the number of ids. An empty list is missing."""
    borders, count = view(offsets, np.int64), np.uint64(0)
    for e in range(np.uint64(len(rows))):
        row = np.uint32(rows[e])
        start, end = np.uint64(borders[row]), np.uint64(borders[row + np.uint32(1)])
        length[e] = end - start
        absent[e] = end == start
        for index in range(start, end):
            out[count] = ids[index]
            count += np.uint64(1)
    return np.int64(count)


@compiled
def fill_weights(
    sources: np.ndarray, offsets: np.ndarray, order: np.ndarray, weights: np.ndarray, starts: np.ndarray, mean: bool
) -> None:
    """Copy the weights of one id list field to `weights` float32; step s starts at index `starts[s]`.

    `sources` [L] are the addresses of the weights, `offsets` [L] the addresses of the lists' offsets. If an address in
    `sources` is 0, the field has no weights: every weight is 1 / (length of the list) if `mean` is true, otherwise 1.
    """
    lanes, steps, each = order.shape
    ends = starts.copy()
    for lane in range(lanes):
        source, borders = view(sources[lane], np.float32), view(offsets[lane], np.int64)
        for step in range(steps):
            out = weights[ends[step] :]
            rows = order[lane, step]
            count = np.uint64(0)
            for e in range(each):
                row = np.uint32(rows[e])
                start, end = np.uint64(borders[row]), np.uint64(borders[row + np.uint32(1)])
                share = np.float32(1 / (end - start) if mean and end > start else 1)
                for index in range(start, end):
                    out[count] = source[index] if sources[lane] else share
                    count += np.uint64(1)
            ends[step] += np.int64(count)


@compiled
def fill_dense(
    sources: np.ndarray,
    order: np.ndarray,
    numeric: np.ndarray,
    missing: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    user: np.ndarray,
) -> None:
    """Copy the numeric fields, label, weight and user, which are the last columns of `sources`.

    numeric: [S, B, numeric fields] float32, gets the numbers, with 0 in place of NaN.
    missing: [S, N, B] bool; its last fields get True where a number is NaN.
    label, weight: [S, B] float32.
    user: [S, B] int64.
    """
    num_numeric = numeric.shape[2]
    first_column, first_field = len(sources) - 3 - num_numeric, missing.shape[1] - num_numeric
    for index in range(num_numeric):
        _copy_numbers(sources[first_column + index, 0], order, numeric, missing, index, first_field + index)
    _copy_words(sources[first_column + num_numeric, 0], order, label, np.float32)
    _copy_words(sources[first_column + num_numeric + 1, 0], order, weight, np.float32)
    _copy_words(sources[first_column + num_numeric + 2, 0], order, user, np.int64)


@compiled
def _copy_numbers(
    sources: np.ndarray, order: np.ndarray, numeric: np.ndarray, missing: np.ndarray, index: int, field: int
) -> None:
    lanes, steps, each = order.shape
    for lane in range(lanes):
        values = view(sources[lane], np.float32)
        for step in range(steps):
            out, absent = numeric[step, lane * each :], missing[step, field, lane * each :]
            rows = order[lane, step]
            for e in range(np.uint64(each)):
                value = values[np.uint32(rows[e])]
                is_missing = np.isnan(value)
                out[e, index] = np.float32(0) if is_missing else value
                absent[e] = is_missing


@compiled
def _copy_words(sources: np.ndarray, order: np.ndarray, targets: np.ndarray, word: type) -> None:
    lanes, steps, each = order.shape
    for lane in range(lanes):
        values = view(sources[lane], word)
        for step in range(steps):
            out, rows = targets[step, lane * each :], order[lane, step]
            for e in range(np.uint64(each)):
                out[e] = values[np.uint32(rows[e])]
