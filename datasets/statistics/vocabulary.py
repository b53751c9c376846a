"""The frequent ids of a field, in a compressed form for `statistics.yaml`."""

from __future__ import annotations

import base64
import zlib
from functools import cached_property
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from asymdiffrec.base import Config

RARE_ID = np.int64(-(2**63))
"""The id that replaces all ids outside a vocabulary"""


class Vocabulary(Config):
    """A set of 64-bit ids, the results of `as_int64_ids`.

    >>> vocabulary = Vocabulary.from_ids(np.array([7, 3, 7]))
    >>> vocabulary.sorted_ids.tolist(), vocabulary.replace_rare(np.array([3, 4])).tolist()
    ([3, 7], [3, -9223372036854775808])
    """

    size: int = Field(ge=0, description="number of ids")
    ids: str = Field(description="differences of the sorted ids, little-endian int64, compressed with zlib, in base64")

    @classmethod
    def from_ids(cls, ids: np.ndarray) -> Self:
        """Return the vocabulary of some ids [V] int64; repetitions count once."""
        ordered = np.unique(ids)
        differences = np.diff(ordered, prepend=ordered.dtype.type(0)).astype("<i8")
        return cls(size=len(ordered), ids=base64.b64encode(zlib.compress(differences.tobytes())).decode())

    @model_validator(mode="after")
    def _require_all_ids(self) -> Self:
        try:
            size = len(self.sorted_ids)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"the ids of the vocabulary cannot be read ({error}); prepare the data again") from None
        if size != self.size:
            raise ValueError(f"the vocabulary has {size} ids instead of {self.size}; prepare the data again")
        return self

    @cached_property
    def sorted_ids(self) -> np.ndarray:
        """The ids in ascending order, [V] int64."""
        differences = np.frombuffer(zlib.decompress(base64.b64decode(self.ids, validate=True)), dtype="<i8")
        return np.cumsum(differences, dtype=np.int64)  # overflow of a difference and of its sum cancel out

    def replace_rare(self, ids: np.ndarray) -> np.ndarray:
        """Return `ids` [V] int64 with RARE_ID in place of each id outside the vocabulary."""
        if not self.size:
            return np.full_like(ids, RARE_ID)
        positions = np.searchsorted(self.sorted_ids, ids).clip(max=self.size - 1)
        return np.where(self.sorted_ids[positions] == ids, ids, RARE_ID)
