"""The ids of a field that were frequent in training, small enough to live in `statistics.yaml`."""

from __future__ import annotations

import base64
import zlib
from functools import cached_property
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

RARE = np.int64(-(2**63))
"""The one id of all that are not in a vocabulary"""


class Vocabulary(BaseModel):
    """A set of 64-bit ids, as `as_int64_ids` makes them of a field's values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0, description="number of ids")
    ids: str = Field(description="the ids in ascending order: differences, little-endian, deflated, base64")

    @classmethod
    def of(cls, ids: np.ndarray) -> Self:
        """The vocabulary of some ids [V] int64."""
        ordered = np.unique(ids)
        steps = np.diff(ordered, prepend=ordered.dtype.type(0)).astype("<i8")
        return cls(size=len(ordered), ids=base64.b64encode(zlib.compress(steps.tobytes())).decode())

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        try:
            found = len(self.sorted)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"the ids of the vocabulary cannot be read ({error}); prepare the data again") from None
        if found != self.size:
            raise ValueError(f"the vocabulary holds {found} ids instead of {self.size}; prepare the data again")
        return self

    @cached_property
    def sorted(self) -> np.ndarray:
        """The ids in ascending order, [V] int64."""
        steps = np.frombuffer(zlib.decompress(base64.b64decode(self.ids, validate=True)), dtype="<i8")
        return np.cumsum(steps, dtype=np.int64)  # differences and sums wrap around alike

    def fold(self, ids: np.ndarray) -> np.ndarray:
        """The ids [V] int64 with those that are not in the vocabulary replaced by RARE."""
        if not self.size:
            return np.full_like(ids, RARE)
        places = np.searchsorted(self.sorted, ids).clip(max=self.size - 1)
        return np.where(self.sorted[places] == ids, ids, RARE)
