"""Count the distinct ids of a field and sample their frequencies, in bounded memory."""

from __future__ import annotations

import numpy as np

from asymdiffrec.datasets.decoding.id_hash import splitmix64

SKETCH_SIZE = 1 << 16


class DistinctIdSketch:
    """A sketch of the distinct 64-bit ids: it keeps the SKETCH_SIZE smallest hashes, with the count of each id.

    A number of distinct ids below SKETCH_SIZE is exact; a larger number is an estimate. If n hashes are uniform in
    [0, 1), the k-th smallest hash h is near k / n, and (k - 1) / h is an unbiased estimate of n. Its relative standard
    error is 1 / sqrt(k - 2), 0.4 % for k = 65,536 (Beyer et al. 2007, "On synopses for distinct-value estimation under
    multiset operations"). The hash is SplitMix64, a bijection, so different ids have different hashes. The order of the
    ids does not matter.

    The ids in the sketch are a uniform sample of the distinct ids. Their counts are exact: the largest hash in the
    sketch only decreases, so an id that is in the sketch at the end was never removed from it. DuckDB's
    approx_count_distinct (HyperLogLog) gives no sample.
    """

    def __init__(self) -> None:
        self._hashes, self._counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, ids: np.ndarray, counts: np.ndarray) -> None:
        """Add ids [V] int64 with their counts [V]."""
        hashes = splitmix64(ids.view(np.uint64))
        if len(self._hashes) == SKETCH_SIZE:
            small = hashes <= self._hashes[-1]
            hashes, counts = hashes[small], counts[small]
        self._pending.append((hashes, counts))
        if sum(len(hashes) for hashes, _ in self._pending) > SKETCH_SIZE:
            self._merge()

    def _merge(self) -> None:
        hashes, counts = zip((self._hashes, self._counts), *self._pending, strict=True)
        self._hashes, positions = np.unique(np.concatenate(hashes), return_inverse=True)
        sums = np.bincount(positions, np.concatenate(counts), len(self._hashes))
        self._counts = sums.astype(np.int64)[:SKETCH_SIZE]
        self._hashes = self._hashes[:SKETCH_SIZE]
        self._pending = []

    def distinct(self) -> tuple[int, bool]:
        """Return the number of distinct ids, and whether it is exact."""
        self._merge()
        if len(self._hashes) < SKETCH_SIZE:
            return len(self._hashes), True
        return round((SKETCH_SIZE - 1) / (int(self._hashes[-1]) / 2**64)), False

    def counts(self) -> np.ndarray:
        """Return the counts of a uniform sample of the distinct ids, [at most SKETCH_SIZE] int64."""
        self._merge()
        return self._counts
