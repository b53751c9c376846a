"""Rules for single values, applied alike to the columns of files and of requests."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets.decoding.arrays import validity

MAX_FLOAT = float(np.finfo(np.float32).max)
"""Largest absolute value of a number or a weight; numbers and weights become fp32."""

ALLOWED_WEIGHTS = "a finite number of at least 0"


def parse_int64(text: str) -> int | None:
    """Return the 64-bit integer that `text` is the usual form of, or None.

    The usual form is what `str` writes, so that each integer has exactly one text: "7", but not "07", "+7" or " 7".
    """
    if re.fullmatch("0|-?[1-9][0-9]*", text) is None:
        return None
    value = int(text)
    return value if -(2**63) <= value < 2**63 else None


def ids_outside_table(ids: pa.Array, num_embeddings: int) -> np.ndarray:
    """Return which ids [V] int64 are not in [0, num_embeddings), [V] bool; False where the id is null."""
    if not len(ids):
        return np.zeros(0, dtype=bool)
    values = np.frombuffer(ids.buffers()[1], np.uint64)[ids.offset : ids.offset + len(ids)]
    outside: np.ndarray = values >= num_embeddings  # a negative id, read as unsigned, is larger than any table
    return outside & validity(ids) if ids.null_count and outside.any() else outside


def are_weights(values: np.ndarray) -> np.ndarray:
    """Return which values [V] float64 are allowed as a weight, [V] bool; NaN is not."""
    return (values >= 0) & (values <= MAX_FLOAT)


def first_wrong_weight(id_counts: np.ndarray, weight_counts: np.ndarray, weights: np.ndarray) -> tuple[int, str] | None:
    """Return the first row whose ids and weights do not fit, with a description of the problem, or None.

    `id_counts` and `weight_counts` [R] are the lengths of the lists, `weights` [V] float64 all weights in order,
    NaN for a null.
    """
    differs = id_counts != weight_counts
    if differs.any():
        row = int(np.argmax(differs))
        return row, f"{id_counts[row]} ids but {weight_counts[row]} weights; there must be one weight per id"
    allowed = are_weights(weights)
    if allowed.all():
        return None
    index = int(np.argmin(allowed))
    row = int(np.searchsorted(np.cumsum(weight_counts), index, side="right"))
    weight = "null or NaN" if np.isnan(weights[index]) else weights[index]
    return row, f"the weight of an id is {weight}; allowed is {ALLOWED_WEIGHTS}"
