"""Features of the past: what happened to the same user, or the same item, before a sample's time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Past:
    """For sample r, `events[begin[r]:end[r]]` are the earlier events of its key, oldest first."""

    events: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def count(self) -> np.ndarray:
        """How many earlier events there are, [R]."""
        return self.end - self.begin

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` [R] over the earlier events, [R]."""
        sums = np.concatenate([[0], np.cumsum(values[self.events])])
        return sums[self.end] - sums[self.begin]

    def last(self, values: np.ndarray, most: int) -> pa.ListArray:
        """`values` [R] of the last `most` earlier events, the most recent last; an empty list where there is none."""
        begin = np.maximum(self.begin, self.end - most)
        offsets = np.concatenate([[0], np.cumsum(self.end - begin)])
        source = np.repeat(begin - offsets[:-1], self.end - begin) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values[self.events[source]]))


def past_of(key: np.ndarray, time: np.ndarray, counts: np.ndarray) -> Past:
    """The earlier events of every sample: those of its key, at a strictly smaller time, where `counts` is true.

    Samples are given by their key and time, both [R] int64 with keys of at least 0; events are those with `counts`,
    [R] bool. Samples of the same second are not in each other's past: in which order they happened is not known.
    """
    since = time - time.min()
    span = since.max() + 1
    moment = key * span + since
    events = np.flatnonzero(counts)
    events = events[np.argsort(moment[events], kind="stable")]
    moments = moment[events]
    return Past(events, np.searchsorted(moments, key * span), np.searchsorted(moments, moment))
