"""Rules for single values, which file decoding and request decoding share."""

import numpy as np
import pyarrow as pa
import pytest

from asymdiffrec.datasets.decoding.value_rules import MAX_FLOAT, first_wrong_weight, ids_outside_table, parse_int64


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-3", -3), (str(2**63 - 1), 2**63 - 1), (str(-(2**63)), -(2**63))]
    + [(text, None) for text in ("", "07", "+7", " 7", "-0", "1.0", "1_000", "٣", str(2**63))],
)
def test_only_the_text_that_str_writes_is_an_integer(text, value):
    assert parse_int64(text) == value


def test_null_ids_are_not_outside_the_table():
    ids = pa.array([7, -1, 0, None, 9, 10]).slice(1)
    assert ids_outside_table(ids, 10).tolist() == [True, False, False, False, True]
    assert ids_outside_table(ids.slice(0, 0), 10).tolist() == []


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ([0.0, MAX_FLOAT, 1.0], None),
        ([0.0, 1.0, -1.0], (2, "the weight of an id is -1.0; allowed is a finite number of at least 0")),
        ([0.0, np.inf, 1.0], (0, "the weight of an id is inf; allowed is a finite number of at least 0")),
        ([0.0, np.nan, 1.0], (0, "the weight of an id is null or NaN; allowed is a finite number of at least 0")),
    ],
)
def test_the_first_row_with_a_wrong_weight_is_found(weights, problem):
    counts = np.array([2, 0, 1])
    assert first_wrong_weight(counts, counts, np.array(weights)) == problem


def test_each_id_needs_a_weight():
    ids, weights = np.array([1, 2, 1]), np.array([1, 1, 2])
    assert first_wrong_weight(ids, weights, np.ones(4)) == (
        1,
        "2 ids but 1 weights; there must be one weight per id",
    )
