"""Which fields are missing together, and how often."""

from __future__ import annotations

from collections import Counter

import numpy as np

from asymdiffrec.datasets.statistics.statistics import MissingPattern

PATTERNS = 256
CANDIDATES = 1 << 17


class Patterns:
    """The most frequent missingness patterns of N fields, and how many rows have each.

    Exact up to CANDIDATES different patterns; when there are more, the rarer half of them is forgotten.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._complete = bytes((len(names) + 7) // 8)
        self._rows: Counter[bytes] = Counter()

    @staticmethod
    def counted(missing: np.ndarray) -> Counter[bytes]:
        """The patterns of the rows of `missing` [R, N], packed, with their numbers of rows."""
        packed = np.packbits(missing, axis=1)
        found, counts = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_counts=True)
        return Counter(dict(zip(map(bytes, found), counts.tolist(), strict=True)))

    def add(self, counted: Counter[bytes]) -> None:
        self._rows.update(counted)
        if len(self._rows) > CANDIDATES:
            complete = self._rows[self._complete]
            self._rows = Counter(dict(self._rows.most_common(CANDIDATES // 2)))
            if complete:
                self._rows[self._complete] = complete

    def most_frequent(self) -> list[MissingPattern]:
        """The PATTERNS most frequent, ties in a fixed order; the complete one is among them if a row was complete."""
        ranked = sorted(self._rows, key=lambda pattern: (-self._rows[pattern], pattern))[:PATTERNS]
        if self._rows[self._complete] and self._complete not in ranked:
            ranked[-1] = self._complete
        return [MissingPattern(missing=self._unpacked(pattern), rows=self._rows[pattern]) for pattern in ranked]

    def _unpacked(self, pattern: bytes) -> list[str]:
        bits = np.unpackbits(np.frombuffer(pattern, np.uint8), count=len(self._names))
        return [name for name, bit in zip(self._names, bits, strict=True) if bit]
