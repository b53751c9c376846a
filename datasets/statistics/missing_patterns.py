"""Count which fields are missing together."""

from __future__ import annotations

from collections import Counter

import numpy as np

from asymdiffrec.datasets.statistics.statistics import MissingPattern

MAX_PATTERNS = 256
"""Maximum number of patterns in `statistics.yaml`"""
MAX_CANDIDATES = 1 << 17
"""Maximum number of different patterns in memory"""


class MissingPatternCounter:
    """A counter of the patterns of missing fields of N fields.

    Counts are exact for up to MAX_CANDIDATES different patterns. Whenever this limit is exceeded, the rarer half of
    the patterns is dropped.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._complete = bytes((len(names) + 7) // 8)
        self._rows: Counter[bytes] = Counter()

    @staticmethod
    def count_rows(missing: np.ndarray) -> Counter[bytes]:
        """Return the number of rows of each pattern in `missing` [R, N] bool; a pattern is packed into bytes."""
        packed = np.packbits(missing, axis=1)
        patterns, counts = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_counts=True)
        return Counter(dict(zip(map(bytes, patterns), counts.tolist(), strict=True)))

    def add(self, rows: Counter[bytes]) -> None:
        """Add the result of `count_rows`."""
        self._rows.update(rows)
        if len(self._rows) > MAX_CANDIDATES:
            complete = self._rows[self._complete]
            self._rows = Counter(dict(self._rows.most_common(MAX_CANDIDATES // 2)))
            if complete:
                self._rows[self._complete] = complete

    def most_frequent(self) -> list[MissingPattern]:
        """Return the MAX_PATTERNS most frequent patterns, in a deterministic order.

        The pattern without missing fields is included if any row has it.
        """
        ranked = sorted(self._rows, key=lambda pattern: (-self._rows[pattern], pattern))[:MAX_PATTERNS]
        if self._rows[self._complete] and self._complete not in ranked:
            ranked[-1] = self._complete
        return [MissingPattern(missing=self._unpack(pattern), rows=self._rows[pattern]) for pattern in ranked]

    def _unpack(self, pattern: bytes) -> list[str]:
        """Return the names of the missing fields of a pattern."""
        bits = np.unpackbits(np.frombuffer(pattern, np.uint8), count=len(self._names))
        return [name for name, bit in zip(self._names, bits, strict=True) if bit]
