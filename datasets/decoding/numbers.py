"""Decode columns of numbers to fp32: numeric fields, labels and sample weights."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.arrays import as_float64
from asymdiffrec.datasets.decoding.native import compiled, view
from asymdiffrec.datasets.decoding.value_rules import ALLOWED_WEIGHTS, MAX_FLOAT, are_weights
from asymdiffrec.datasets.schema import NumericFieldConfig
from asymdiffrec.datasets.statistics.statistics import NumericStatistics


def transform_values(values: np.ndarray, transform: str) -> np.ndarray:
    """Apply `NumericFieldConfig.transform` to values [R] float64; NaN stays NaN."""
    if transform == "log1p":
        return np.copysign(np.log1p(np.abs(values)), values)
    if transform == "log_squared":
        return np.where(values > 2, np.square(np.log(np.maximum(values, 2))), values)
    return values


def decode_numbers(
    column: pa.Array, field: NumericFieldConfig, statistics: NumericStatistics, location: str
) -> np.ndarray:
    """Return the transformed and standardised numbers of a column, [R] float32; NaN where missing.

    Raises InputError with `location` and row if a standardised number is not finite in fp32.
    """
    values = transform_values(as_float64(column), field.transform)
    standardised = np.empty(len(values), np.float32)
    if _standardise(values.ctypes.data, statistics.mean, statistics.std, standardised):
        with np.errstate(over="ignore"):
            is_allowed = ~(np.abs((values - statistics.mean) / statistics.std) > MAX_FLOAT)
        allowed = "null, NaN or a number that is finite in fp32 after standardising"
        _require(is_allowed, column, location, "number", allowed)
    return standardised


@compiled
def _standardise(address: int, mean: float, std: float, out: np.ndarray) -> bool:
    """Write the standardised float64 values at `address` to `out`; return whether any of them is too large for fp32."""
    values, is_too_large = view(address, np.float64), False
    for index in range(np.uint64(len(out))):
        value = (values[index] - mean) / std
        is_too_large |= abs(value) > MAX_FLOAT
        out[index] = value
    return is_too_large


def decode_labels(column: pa.Array, location: str) -> np.ndarray:
    """Return a column of labels, [R] float32. Raises InputError if a label is not 0 or 1."""
    values = as_float64(column)
    _require((values == 0) | (values == 1), column, location, "label", "0 or 1")
    return values.astype(np.float32)


def decode_sample_weights(column: pa.Array, location: str) -> np.ndarray:
    """Return sample weights, [R] float32. Raises InputError if a weight is null, negative or not finite."""
    values = as_float64(column)
    _require(are_weights(values), column, location, "weight", ALLOWED_WEIGHTS)
    return values.astype(np.float32)


def _require(is_allowed: np.ndarray, column: pa.Array, location: str, what: str, allowed: str) -> None:
    """Raise InputError for the first value of `column` [R] where `is_allowed` [R] bool is False."""
    if not is_allowed.all():
        row = int(np.argmin(is_allowed))
        raise InputError(f"{location}, row {row}: {what} {column[row].as_py()}; allowed is {allowed}")
