"""How many distinct ids there are, and how often each, in memory that does not grow with their number."""

from __future__ import annotations

import numpy as np

from asymdiffrec.datasets.decoding.hashing import splitmix64

KEPT = 1 << 16


class Distinct:
    """The number of distinct 64-bit ids, from the KEPT smallest of their hashes.

    Exact below KEPT ids. From there on an estimate: where n hashes lie uniformly in [0, 1), the k-th smallest lies near
    k / n, and (k - 1) / it estimates n without bias, with a relative standard error of 1 / sqrt(k - 2), 0.4 % for
    k = 65,536 (Beyer et al. 2007, "On synopses for distinct-value estimation under multiset operations"). The hash is
    SplitMix64, a bijection: hashes are as distinct as the ids. The order of the ids changes nothing.

    The ids that are kept are a uniform sample of the distinct ones, and each of them was counted from its first time
    on: the largest hash that is kept only ever falls.
    """

    def __init__(self) -> None:
        self._smallest, self._times = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, ids: np.ndarray, times: np.ndarray) -> None:
        """Take in some ids [V] int64, each so many times [V]."""
        hashes = splitmix64(ids.view(np.uint64))
        if len(self._smallest) == KEPT:
            small = hashes <= self._smallest[-1]
            hashes, times = hashes[small], times[small]
        self._waiting.append((hashes, times))
        if sum(len(hashes) for hashes, _ in self._waiting) > KEPT:
            self._merge()

    def _merge(self) -> None:
        hashes, times = zip((self._smallest, self._times), *self._waiting, strict=True)
        self._smallest, places = np.unique(np.concatenate(hashes), return_inverse=True)
        self._times = np.bincount(places, np.concatenate(times), len(self._smallest)).astype(np.int64)[:KEPT]
        self._smallest = self._smallest[:KEPT]
        self._waiting = []

    def count(self) -> tuple[int, bool]:
        """The number of distinct ids, and whether it is exact."""
        self._merge()
        if len(self._smallest) < KEPT:
            return len(self._smallest), True
        return round((KEPT - 1) / (int(self._smallest[-1]) / 2**64)), False

    def times(self) -> np.ndarray:
        """How often each id of a uniform sample of the distinct ones was there, [at most KEPT] int64."""
        self._merge()
        return self._times
