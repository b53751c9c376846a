"""Arrow columns of every type that is allowed, sliced and with nulls, against Python's lists."""

import itertools
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding import columns
from asymdiffrec.datasets.decoding.hashing import hash_rows, string_ids
from asymdiffrec.datasets.schema import IdConfig, NumericFieldConfig, table_seed
from asymdiffrec.datasets.statistics.statistics import NumericStatistics

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
STRINGS = [pa.string(), pa.large_string()]
DICTIONARIES = [pa.dictionary(pa.int32(), kind) for kind in (pa.string(), pa.large_string(), pa.int64())]
NUMBERS = [*INTEGERS, pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2), pa.decimal256(50, 2)]

NUMBER = NumericFieldConfig(type="number")
PLACE = "train/part-0.parquet, row group 3, column item"
quick = settings(derandomize=True, deadline=None, max_examples=60)


def field(**settings):
    return IdConfig.model_validate({"type": "id", "num_embeddings": 1000} | settings)


def rows_of(column, **settings):
    return columns.id_rows(column, field(**settings), table_seed("item"), None, PLACE).tolist()


def reference(ids, values):
    """Table rows of ids that are integers or None."""
    numbers = [0 if i is None else i for i in ids]
    keys = np.array(numbers, dtype=np.int64) if values == "int" else string_ids(pa.array([str(i) for i in numbers]))
    found = hash_rows(pa.array(keys), table_seed("item"), 1000).tolist()
    return [-1 if i is None else row for i, row in zip(ids, found, strict=True)]


def as_kind(ids, kind):
    """A column of the ids, written as text where the type holds strings."""
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    items = ids if pa.types.is_integer(values) else [None if i is None else str(i) for i in ids]
    column = pa.array(items, values)
    return column.dictionary_encode() if pa.types.is_dictionary(kind) else column


@pytest.mark.parametrize("values", ["int", "string"])
@pytest.mark.parametrize("kind", [*INTEGERS, *STRINGS, *DICTIONARIES], ids=str)
def test_an_id_has_the_same_row_in_a_column_of_any_type(kind, values):
    ids = [5, None, 0, 127, None, 5, 99]
    column = as_kind([None, 3, *ids, None, 8], kind).slice(2, len(ids))
    assert rows_of(column, values=values) == reference(ids, values)
    assert rows_of(column.drop_null(), values=values) == reference([i for i in ids if i is not None], values)
    assert rows_of(column.slice(0, 0), values=values) == []


@pytest.mark.parametrize("kind", [pa.int64(), *STRINGS], ids=str)
def test_ids_of_64_bits_are_kept_whole(kind):
    ids = [-(2**63), 2**63 - 1, 2**53 + 1, -1]
    assert rows_of(as_kind(ids, kind)) == reference(ids, "int")


def test_unsigned_ids_beyond_63_bits_are_hashed_by_their_bits():
    assert rows_of(pa.array([2**64 - 1], pa.uint64())) == reference([-1], "int")


@pytest.mark.parametrize("kind", STRINGS, ids=str)
@pytest.mark.parametrize("text", ["007", "1.5", "", " 7", "+7", "-0", "0x1f", "seven", "9223372036854775808", "٣"])
def test_a_string_that_is_no_plain_integer_is_refused(text, kind):
    column = pa.array(["junk", None, "12", "-3", text, "4"], kind).slice(1)
    with pytest.raises(InputError) as caught:
        rows_of(column)
    assert str(caught.value) == (
        f"{PLACE}, row 3: {text!r} is no 64-bit integer in its usual form; declare the field values: string"
    )
    assert len(rows_of(column, values="string")) == 5


def test_a_null_of_the_dictionary_is_missing():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(["a", None]))
    assert [row >= 0 for row in rows_of(column, values="string")] == [True, False, False, True]
    values, lengths = columns.ragged(pa.ListArray.from_arrays(pa.array([0, 2, 4]), column))
    assert (values.to_pylist(), lengths.tolist()) == (["a", "a"], [1, 1])


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.uint64(), pa.string()], ids=str)
def test_ids_are_rows_where_hashing_is_off(kind):
    assert rows_of(as_kind([0, None, 9], kind), hash=False, num_embeddings=10) == [0, -1, 9]


@pytest.mark.parametrize("wrong", [-1, 10, 2**63 - 1])
def test_a_row_beyond_the_table_is_refused(wrong):
    column = pa.array([None, 1, None, wrong, 3])
    with pytest.raises(
        InputError, match=rf"row 3: id {wrong} with hash: false; allowed is 0 to 9 \(num_embeddings: 10\)"
    ):
        rows_of(column, hash=False, num_embeddings=10)
    with pytest.raises(InputError, match="row 0: id 18446744073709551615 with"):
        rows_of(pa.array([2**64 - 1], pa.uint64()), hash=False, num_embeddings=10)


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
@pytest.mark.parametrize("wrap", [pa.list_, pa.large_list], ids=["list", "large_list"])
@quick
@given(
    lists=st.lists(st.none() | st.lists(st.none() | st.integers(0, 9), max_size=4), max_size=8),
    start=st.integers(0, 3),
)
def test_lists_lose_their_nulls_and_nothing_else(wrap, kind, lists, start):
    items = pa.string() if pa.types.is_dictionary(kind) else kind
    texts = [None if one is None else as_kind(one, items).to_pylist() for one in lists]
    column = pa.array(texts, wrap(items)).cast(wrap(kind)).slice(min(start, len(lists)))
    values, lengths = columns.ragged(column)
    expected = [[i for i in one or [] if i is not None] for one in texts[start:]]
    assert values.to_pylist() == list(itertools.chain(*expected))
    assert lengths.tolist() == [len(one) for one in expected]
    assert lengths.dtype == np.int64


@pytest.mark.parametrize("start", [0, 1, 2])
def test_values_behind_a_null_list_are_not_read(start):
    column = pa.ListArray.from_arrays(
        pa.array([0, 2, 5, 6]), pa.array([1, None, 3, None, 5, 6]), mask=pa.array([False, True, False])
    ).slice(start)
    values, lengths = columns.ragged(column)
    assert values.to_pylist() == [1, 6][min(start, 1) :]
    assert lengths.tolist() == [1, 0, 1][start:]


def test_lists_of_one_length_are_lists():
    column = pa.array([[9, 9], [1, 2], None, [3, None]], pa.list_(pa.int64(), 2)).slice(1)
    values, lengths = columns.ragged(column)
    assert (values.to_pylist(), lengths.tolist()) == ([1, 2, 3], [2, 0, 1])


def test_a_column_without_a_type_is_missing_everywhere():
    assert rows_of(pa.nulls(2)) == rows_of(pa.nulls(2), values="string") == [-1, -1]
    assert np.isnan(columns.floats(pa.nulls(2))).all()
    for column in (pa.nulls(2), pa.array([[None], []], pa.list_(pa.null()))):
        values, lengths = columns.ragged(column)
        assert lengths.tolist() == [0, 0]
        assert rows_of(values) == []


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_numbers_of_any_type_are_floats_with_nan_for_null(kind):
    number = Decimal if pa.types.is_decimal(kind) else np.float16 if pa.types.is_float16(kind) else int
    column = pa.array([number(1), number(3), None, number(100), None], kind).slice(1)
    np.testing.assert_array_equal(columns.floats(column), [3, np.nan, 100, np.nan])


def test_numbers_may_be_bool_nan_and_beyond_2_53():
    np.testing.assert_array_equal(columns.floats(pa.array([True, None, False])), [1, np.nan, 0])
    np.testing.assert_array_equal(columns.floats(pa.array([1.5, np.nan, None])), [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(columns.floats(pa.array([2**60 + 1, None])), [2.0**60, np.nan])


def test_numbers_are_standardised():
    found = columns.standardised(pa.array([10.0, None, np.nan, 16.0]), NUMBER, NumericStatistics(mean=12, std=4), PLACE)
    np.testing.assert_array_equal(found, np.array([-0.5, np.nan, np.nan, 1], np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, 1e300])
def test_a_number_that_is_not_finite_is_refused(wrong):
    with pytest.raises(InputError) as caught:
        columns.standardised(pa.array([None, 1.0, wrong, np.inf]), NUMBER, NumericStatistics(mean=0, std=1e-10), PLACE)
    assert str(caught.value).startswith(f"{PLACE}, row 2: number {wrong}; allowed is null, NaN or a finite")


@pytest.mark.parametrize("column", [[0, 1], [0.0, 1.0], [False, True]])
def test_labels_are_zeros_and_ones(column):
    found = columns.labels(pa.array(column), PLACE)
    assert (found.tolist(), found.dtype) == ([0, 1], np.float32)


@pytest.mark.parametrize("wrong", [None, np.nan, 0.5, 2.0, -1.0])
def test_any_other_label_is_refused(wrong):
    with pytest.raises(InputError) as caught:
        columns.labels(pa.array([0.0, 1.0, wrong]), PLACE)
    assert str(caught.value) == f"{PLACE}, row 2: label {wrong}; allowed is 0 or 1"


def test_weights_are_finite_and_not_negative():
    assert columns.weights(pa.array([0, 2]), PLACE).tolist() == [0, 2]
    for wrong in (None, np.nan, -0.5, np.inf, 1e300):
        with pytest.raises(InputError) as caught:
            columns.weights(pa.array([1.0, wrong]), PLACE)
        assert str(caught.value) == f"{PLACE}, row 1: weight {wrong}; allowed is a finite number of at least 0"


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.dictionary(pa.int32(), pa.int64())], ids=str)
def test_users_that_are_integers_keep_their_number(kind):
    assert columns.users(as_kind([7, 8, 7], kind), PLACE).tolist() == [7, 8, 7]


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()], ids=str)
def test_a_row_without_a_user_is_a_user_of_its_own(kind):
    column = as_kind([7, None, 7, None], kind)
    found = columns.users(column, PLACE)
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 3
    elsewhere = columns.users(column, "another row group")
    assert found[0] == elsewhere[0]
    assert len({*found.tolist(), *elsewhere.tolist()}) == 5
