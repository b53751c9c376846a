"""Columns of numeric fields, labels and sample weights."""

import numpy as np
import pyarrow as pa
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.numbers import decode_labels, decode_numbers, decode_sample_weights
from asymdiffrec.datasets.schema import NumericFieldConfig
from asymdiffrec.datasets.statistics.statistics import NumericStatistics

FIELD = NumericFieldConfig(type="number")
LOCATION = "train/part-0.parquet, row group 3, column price"


def test_numbers_are_standardised():
    column = pa.array([10.0, None, np.nan, 16.0])
    values = decode_numbers(column, FIELD, NumericStatistics(mean=12, std=4), LOCATION)
    np.testing.assert_array_equal(values, np.array([-0.5, np.nan, np.nan, 1], np.float32))
    assert values.dtype == np.float32


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, 1e300])
def test_a_number_that_is_not_finite_in_fp32_is_an_error(wrong):
    with pytest.raises(InputError) as caught:
        decode_numbers(pa.array([None, 1.0, wrong, np.inf]), FIELD, NumericStatistics(mean=0, std=1e-10), LOCATION)
    assert str(caught.value).startswith(f"{LOCATION}, row 2: number {wrong}; allowed is null, NaN or a number")


@pytest.mark.parametrize("column", [[0, 1], [0.0, 1.0], [False, True]])
def test_labels_are_0_and_1_in_fp32(column):
    labels = decode_labels(pa.array(column), LOCATION)
    assert (labels.tolist(), labels.dtype) == ([0, 1], np.float32)


@pytest.mark.parametrize("wrong", [None, np.nan, 0.5, 2.0, -1.0])
def test_any_other_label_is_an_error(wrong):
    with pytest.raises(InputError) as caught:
        decode_labels(pa.array([0.0, 1.0, wrong]), LOCATION)
    assert str(caught.value) == f"{LOCATION}, row 2: label {wrong}; allowed is 0 or 1"


def test_sample_weights_are_finite_and_not_negative():
    assert decode_sample_weights(pa.array([0, 2]), LOCATION).tolist() == [0, 2]
    for wrong in (None, np.nan, -0.5, np.inf, 1e300):
        with pytest.raises(InputError) as caught:
            decode_sample_weights(pa.array([1.0, wrong]), LOCATION)
        assert str(caught.value) == f"{LOCATION}, row 1: weight {wrong}; allowed is a finite number of at least 0"
