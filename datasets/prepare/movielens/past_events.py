"""Find the earlier events of each sample's user or item, and compute features from these events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class PastEvents:
    """The earlier events of R samples. The earlier events of sample r are `events[begin[r]:end[r]]`, oldest first.

    >>> user, time = np.array([7, 7, 7]), np.array([10, 20, 30])
    >>> past = past_events(user, time, counts=np.array([True, True, True]))
    >>> past.count().tolist(), past.total(np.array([5.0, 1.0, 3.0])).tolist()
    ([0, 1, 2], [0.0, 5.0, 6.0])
    """

    events: np.ndarray
    """[E] sample index of each event"""
    begin: np.ndarray
    """[R]"""
    end: np.ndarray
    """[R]"""

    def count(self) -> np.ndarray:
        """Return the number of earlier events of each sample, [R]."""
        return self.end - self.begin

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of `values` [R] over the earlier events of each sample, [R]."""
        sums = np.concatenate([[0], np.cumsum(values[self.events])])
        return sums[self.end] - sums[self.begin]

    def last(self, values: np.ndarray, max_length: int) -> pa.ListArray:
        """Return the `values` [R] of the latest `max_length` earlier events of each sample, the latest last, [R]."""
        begin = np.maximum(self.begin, self.end - max_length)
        offsets = np.concatenate([[0], np.cumsum(self.end - begin)])
        source = np.repeat(begin - offsets[:-1], self.end - begin) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values[self.events[source]]))


def past_events(key: np.ndarray, time: np.ndarray, counts: np.ndarray) -> PastEvents:
    """Return the earlier events of every sample: events with the same key and a strictly smaller time.

    key: [R] int64, the key of each sample, for example its user; at least 0.
    time: [R] int64, the time of each sample.
    counts: [R] bool, True for the samples that are events.

    Events at the same time as a sample do not count as earlier, because their order is unknown. The events are found
    with two binary searches, without a database. The recipe benchmarks/recipes/movielens-100k.yaml computes the same
    features with window functions of DuckDB.
    """
    elapsed = time - time.min()
    duration = elapsed.max() + 1
    moment = key * duration + elapsed  # sorts by key, then by time
    events = np.flatnonzero(counts)
    events = events[np.argsort(moment[events], kind="stable")]
    event_moments = moment[events]
    return PastEvents(events, np.searchsorted(event_moments, key * duration), np.searchsorted(event_moments, moment))
