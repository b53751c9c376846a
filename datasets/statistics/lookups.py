"""How often the distinct ids of a field come again: what caches of embedding rows live on."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

EXACT = 8
"""Look-ups up to which ids are counted by their own number; above, two numbers an octave stand for those around them"""
ENOUGH = 30
"""Ids of a sample that speak for a class of ids; the most frequent ids are put together until there are so many"""


class Lookups(BaseModel):
    """How the ids of a field are looked up, over the training rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_sample: float = Field(description="mean number of ids of a sample; a sample that lacks the field has none")
    repeats: list[tuple[float, float]] = Field(
        description="[n, ids]: how many of the distinct ids are looked up about n times; estimated where there are many"
    )

    @classmethod
    def of(cls, counts: np.ndarray, distinct: int, rows: int, total: int) -> Self:
        """The look-ups of a field: `total` in `rows` samples, of `distinct` ids; a uniform sample of them has `counts`.

        Rare ids, which are many, are as frequent as in the sample. The few that take much of all look-ups are hardly
        in it: they get what the others leave of the total.
        """
        if not len(counts):
            return cls(per_sample=0.0, repeats=[])
        counts = np.sort(counts)
        classes = np.where(counts <= EXACT, counts, EXACT + 1 + np.floor(2 * np.log2(counts / EXACT)))
        if len(counts) < distinct:
            classes = np.minimum(classes, classes[-min(ENOUGH, len(classes))])
        scale = distinct / len(counts)
        alike = [counts[classes == one] for one in np.unique(classes)]
        repeats = [(float(like.mean()), len(like) * scale) for like in alike]
        rest = total - sum(count * ids for count, ids in repeats[:-1])
        repeats[-1] = max(rest / repeats[-1][1], float(alike[-1][0])), repeats[-1][1]
        return cls(per_sample=total / rows, repeats=[(round(count, 3), round(ids, 3)) for count, ids in repeats])

    def hot_ids(self, share: float) -> int:
        """How many ids, the most frequent ones, take a share of the look-ups."""
        counts, ids = self._descending()
        reached = np.cumsum(counts * ids)
        if not len(reached):
            return 0
        return int(np.ceil(np.interp(share * reached[-1], [0.0, *reached], [0.0, *np.cumsum(ids)])))

    def expected_distinct(self, drawn: float, without: float = 0.0) -> float:
        """How many distinct ids `drawn` look-ups are of, on average, the `without` most frequent ids not counted.

        An id that takes a share p of the look-ups is among n of them with probability 1 - (1 - p)^n.
        """
        counts, ids = self._descending()
        before = np.cumsum(ids) - ids
        left = np.clip(before + ids - without, 0, ids)
        shares = np.minimum(counts / max((counts * ids).sum(), 1e-300), 1.0)
        with np.errstate(divide="ignore"):
            return float((left * -np.expm1(drawn * np.log1p(-shares))).sum())

    def _descending(self) -> tuple[np.ndarray, np.ndarray]:
        """Look-ups and ids of each class, the most frequent first."""
        counts, ids = np.array(sorted(self.repeats, reverse=True), dtype=np.float64).reshape(-1, 2).T
        return counts, ids
