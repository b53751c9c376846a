"""Columns of ids in every allowed type, sliced and with nulls, compared with Python's integers and strings."""

import numpy as np
import pyarrow as pa
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.decoding.id_hash import hash_ids
from asymdiffrec.datasets.decoding.ids import decode_ids, decode_users
from asymdiffrec.datasets.decoding.string_hash import string_ids
from asymdiffrec.datasets.schema import FieldsConfig, table_seed

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
STRINGS = [pa.string(), pa.large_string()]
DICTIONARIES = [pa.dictionary(pa.int32(), value_type) for value_type in (pa.string(), pa.large_string(), pa.int64())]
LOCATION = "train/part-0.parquet, row group 3, column item"


def rows_of(column, **settings):
    """Return the table rows of a column of ids for a field `item` with some settings."""
    field = {"type": "id", "num_embeddings": 1000} | settings
    table = FieldsConfig.model_validate({"fields": {"item": field}}).to_schema().table_of("item")
    return decode_ids(column, table, None, LOCATION).tolist()


def reference(ids, values):
    """Return the table rows of ids that are integers or None."""
    integers = [0 if i is None else i for i in ids]
    keys = np.array(integers, dtype=np.int64) if values == "int" else string_ids(pa.array([str(i) for i in integers]))
    rows = hash_ids(pa.array(keys), table_seed("item"), 1000).tolist()
    return [-1 if i is None else row for i, row in zip(ids, rows, strict=True)]


def column_of(ids, column_type):
    """Return a column of integer ids, as text if the type holds strings."""
    value_type = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    items = ids if pa.types.is_integer(value_type) else [None if i is None else str(i) for i in ids]
    column = pa.array(items, value_type)
    return column.dictionary_encode() if pa.types.is_dictionary(column_type) else column


@pytest.mark.parametrize("values", ["int", "string"])
@pytest.mark.parametrize("column_type", [*INTEGERS, *STRINGS, *DICTIONARIES], ids=str)
def test_an_id_has_the_same_row_in_a_column_of_any_type(column_type, values):
    ids = [5, None, 0, 127, None, 5, 99]
    column = column_of([None, 3, *ids, None, 8], column_type).slice(2, len(ids))
    assert rows_of(column, values=values) == reference(ids, values)
    assert rows_of(column.drop_null(), values=values) == reference([i for i in ids if i is not None], values)
    assert rows_of(column.slice(0, 0), values=values) == []


@pytest.mark.parametrize("column_type", [pa.int64(), *STRINGS], ids=str)
def test_all_64_bits_of_an_id_are_hashed(column_type):
    ids = [-(2**63), 2**63 - 1, 2**53 + 1, -1]
    assert rows_of(column_of(ids, column_type)) == reference(ids, "int")


def test_unsigned_ids_above_63_bits_are_hashed_by_their_bits():
    assert rows_of(pa.array([2**64 - 1], pa.uint64())) == reference([-1], "int")


@pytest.mark.parametrize("column_type", STRINGS, ids=str)
@pytest.mark.parametrize("text", ["007", "1.5", "", " 7", "+7", "-0", "0x1f", "seven", "9223372036854775808", "٣"])
def test_a_string_that_is_no_integer_in_its_usual_form_is_an_error(text, column_type):
    column = pa.array(["junk", None, "12", "-3", text, "4"], column_type).slice(1)
    with pytest.raises(InputError) as caught:
        rows_of(column)
    assert str(caught.value) == (
        f"{LOCATION}, row 3: {text!r} is no 64-bit integer in its usual form; set values: string for this field"
    )
    assert len(rows_of(column, values="string")) == 5


def test_an_index_of_a_null_dictionary_entry_is_missing():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(["a", None]))
    assert [row >= 0 for row in rows_of(column, values="string")] == [True, False, False, True]


@pytest.mark.parametrize("column_type", [pa.int64(), pa.int8(), pa.uint64(), pa.string()], ids=str)
def test_ids_are_table_rows_with_hash_false(column_type):
    assert rows_of(column_of([0, None, 9], column_type), hash=False, num_embeddings=10) == [0, -1, 9]


@pytest.mark.parametrize("wrong", [-1, 10, 2**63 - 1])
def test_an_id_outside_a_table_with_hash_false_is_an_error(wrong):
    column = pa.array([None, 1, None, wrong, 3])
    with pytest.raises(
        InputError, match=rf"row 3: id {wrong} with hash: false; allowed is 0 to 9 \(num_embeddings: 10\)"
    ):
        rows_of(column, hash=False, num_embeddings=10)
    with pytest.raises(InputError, match="row 0: id 18446744073709551615 with"):
        rows_of(pa.array([2**64 - 1], pa.uint64()), hash=False, num_embeddings=10)


def test_a_column_of_type_null_is_missing_everywhere():
    assert rows_of(pa.nulls(2)) == rows_of(pa.nulls(2), values="string") == [-1, -1]


@pytest.mark.parametrize("column_type", [pa.int64(), pa.int8(), pa.dictionary(pa.int32(), pa.int64())], ids=str)
def test_integer_users_keep_their_number(column_type):
    assert decode_users(column_of([7, 8, 7], column_type), LOCATION).tolist() == [7, 8, 7]


@pytest.mark.parametrize("column_type", [pa.int64(), pa.string()], ids=str)
def test_each_row_without_a_user_is_a_separate_user(column_type):
    column = column_of([7, None, 7, None], column_type)
    users = decode_users(column, LOCATION)
    assert users[0] == users[2]
    assert len(set(users.tolist())) == 3
    others = decode_users(column, "another row group")
    assert users[0] == others[0]
    assert len({*users.tolist(), *others.tolist()}) == 5
