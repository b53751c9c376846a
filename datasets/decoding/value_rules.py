"""Rules for single values. The same rules apply to columns of files and of requests."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets.decoding.arrays import validity

MAX_FLOAT = float(np.finfo(np.float32).max)
"""Largest absolute value of a number or a weight; numbers and weights become fp32."""

ALLOWED_WEIGHTS = "a finite number of at least 0"


def parse_int64(text: str) -> int | None:
    """Return the 64-bit integer that `text` stands for, or None if `text` is no such integer in its usual form.

    The usual form is the result of `str`, so each integer has exactly one text: "7", but not "07", "+7" or " 7".
    """
    if re.fullmatch("0|-?[1-9][0-9]*", text) is None:
        return None
    value = int(text)
    return value if -(2**63) <= value < 2**63 else None


def ids_outside_table(ids: pa.Array, num_embeddings: int) -> np.ndarray:
    """Return [V] bool: True where an id [V] int64 is not in [0, num_embeddings); False for null."""
    if not len(ids):
        return np.zeros(0, dtype=bool)
    values = np.frombuffer(ids.buffers()[1], np.uint64)[ids.offset : ids.offset + len(ids)]
    outside: np.ndarray = values >= num_embeddings  # a negative id, read as unsigned, is larger than any table
    return outside & validity(ids) if ids.null_count and outside.any() else outside


def are_weights(values: np.ndarray) -> np.ndarray:
    """Return [V] bool: True where a value [V] float64 is an allowed weight; False for NaN."""
    return (values >= 0) & (values <= MAX_FLOAT)


def first_wrong_weight(id_counts: np.ndarray, weight_counts: np.ndarray, weights: np.ndarray) -> tuple[int, str] | None:
    """Return the first row with wrong weights and a description of the problem, or None if all rows are right.

    id_counts: [R], lengths of the id lists.
    weight_counts: [R], lengths of the weight lists.
    weights: [V] float64, the weights of all lists in order; NaN for null.
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
