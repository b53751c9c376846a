"""List columns and number columns of every allowed type, compared with Python's lists."""

import itertools
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.decoding.arrays import as_float64, flatten_lists_without_nulls

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
NUMBERS = [*INTEGERS, pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2), pa.decimal256(50, 2)]
quick = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.mark.parametrize("value_type", [pa.int64(), pa.string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list], ids=["list", "large_list"])
@quick
@given(
    lists=st.lists(st.none() | st.lists(st.none() | st.integers(0, 9), max_size=4), max_size=8),
    start=st.integers(0, 3),
)
def test_flattened_lists_lose_only_their_nulls(list_type, value_type, lists, start):
    plain_type = pa.string() if pa.types.is_dictionary(value_type) else value_type
    if plain_type == pa.string():
        lists = [None if one is None else [None if i is None else str(i) for i in one] for one in lists]
    column = pa.array(lists, list_type(plain_type)).cast(list_type(value_type)).slice(min(start, len(lists)))
    values, lengths = flatten_lists_without_nulls(column)
    expected = [[i for i in one or [] if i is not None] for one in lists[start:]]
    assert values.to_pylist() == list(itertools.chain(*expected))
    assert lengths.tolist() == [len(one) for one in expected]
    assert lengths.dtype == np.int64


@pytest.mark.parametrize("start", [0, 1, 2])
def test_elements_behind_a_null_list_are_left_out(start):
    column = pa.ListArray.from_arrays(
        pa.array([0, 2, 5, 6]), pa.array([1, None, 3, None, 5, 6]), mask=pa.array([False, True, False])
    ).slice(start)
    values, lengths = flatten_lists_without_nulls(column)
    assert values.to_pylist() == [1, 6][min(start, 1) :]
    assert lengths.tolist() == [1, 0, 1][start:]


def test_lists_of_fixed_length_are_flattened():
    column = pa.array([[9, 9], [1, 2], None, [3, None]], pa.list_(pa.int64(), 2)).slice(1)
    values, lengths = flatten_lists_without_nulls(column)
    assert (values.to_pylist(), lengths.tolist()) == ([1, 2, 3], [2, 0, 1])


def test_elements_with_a_null_dictionary_entry_are_null():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(["a", None]))
    values, lengths = flatten_lists_without_nulls(pa.ListArray.from_arrays(pa.array([0, 2, 4]), column))
    assert (values.to_pylist(), lengths.tolist()) == (["a", "a"], [1, 1])


def test_lists_without_an_element_type_are_empty():
    for column in (pa.nulls(2), pa.array([[None], []], pa.list_(pa.null()))):
        values, lengths = flatten_lists_without_nulls(column)
        assert lengths.tolist() == [0, 0]
        assert (len(values), values.type) == (0, pa.int64())


@pytest.mark.parametrize("column_type", NUMBERS, ids=str)
def test_numbers_of_any_type_become_float64_with_nan_for_null(column_type):
    number = Decimal if pa.types.is_decimal(column_type) else np.float16 if pa.types.is_float16(column_type) else int
    column = pa.array([number(1), number(3), None, number(100), None], column_type).slice(1)
    np.testing.assert_array_equal(as_float64(column), [3, np.nan, 100, np.nan])


def test_numbers_may_be_bool_nan_null_or_above_2_53():
    np.testing.assert_array_equal(as_float64(pa.array([True, None, False])), [1, np.nan, 0])
    np.testing.assert_array_equal(as_float64(pa.array([1.5, np.nan, None])), [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(as_float64(pa.array([2**60 + 1, None])), [2.0**60, np.nan])
    assert np.isnan(as_float64(pa.nulls(2))).all()
