"""Decoding of whole tables: field order, errors with their location, dictionaries, vocabularies and weights."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import to_batch
from asymdiffrec.datasets.decoding.rows import Rows, decode, no_rows
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.datasets.statistics.vocabulary import RARE_ID, Vocabulary
from tests.datasets.sample_rows import (
    COLUMN_TYPES,
    NUM_EMBEDDINGS,
    SCHEMA,
    WEIGHTED_SCHEMA,
    bags,
    decode_samples,
    hashed,
    sample_lists,
    table_of,
    weighted_table,
)

quick = settings(derandomize=True, deadline=None, max_examples=60)


@quick
@given(sample_lists, st.data())
def test_rows_are_sliced_and_concatenated_like_lists(samples, data):
    rows, size = decode_samples(samples), len(samples)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))

    def assert_equal(part, expected):
        actual_batch, expected_batch = to_batch(part, SCHEMA, 0), to_batch(decode_samples(expected), SCHEMA, 0)
        assert bags(actual_batch) == bags(expected_batch)
        assert actual_batch.numeric.tolist() == expected_batch.numeric.tolist()
        assert actual_batch.user.tolist() == expected_batch.user.tolist()

    assert_equal(rows.slice(start, stop), samples[start:stop])
    assert_equal(
        Rows.concatenate([rows.slice(start, stop), rows, rows.slice(0, start)]),
        samples[start:stop] + samples + samples[:start],
    )
    assert_equal(Rows.concatenate([no_rows(SCHEMA), rows]), samples)
    assert_equal(no_rows(SCHEMA), [])


def test_fields_of_one_table_hash_alike_and_tables_hash_independently():
    samples = [dict.fromkeys(SCHEMA.names) | {"label": 0, "weight": 1, "user": 0} for _ in range(200)]
    for k, sample in enumerate(samples):
        sample |= {"item": k, "history": [k], "city": str(k), "tags": [str(k)]}
    ids = bags(to_batch(decode_samples(samples), SCHEMA, 0))
    assert ids["item"] == ids["history"]
    equal = sum(city == tags for city, tags in zip(ids["city"], ids["tags"], strict=True))
    assert equal < 200 / NUM_EMBEDDINGS * 2


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            {"slot": NUM_EMBEDDINGS},
            f"column slot, row 2: id {NUM_EMBEDDINGS} with hash: false; allowed is 0 to {NUM_EMBEDDINGS - 1} "
            f"(num_embeddings: {NUM_EMBEDDINGS})",
        ),
        ({"label": 2}, "column label, row 2: label 2; allowed is 0 or 1"),
        ({"label": None}, "column label, row 2: label None; allowed is 0 or 1"),
        ({"weight": -1.0}, "column weight, row 2: weight -1.0; allowed is a finite number of at least 0"),
        ({"weight": np.nan}, "column weight, row 2: weight nan; allowed is"),
        ({"age": np.inf}, "column age, row 2: number inf; allowed is"),
    ],
)
def test_the_error_for_a_wrong_value_names_its_row(wrong, text):
    good = dict.fromkeys(SCHEMA.names) | {"label": 1, "weight": 1, "user": 1}
    with pytest.raises(InputError) as caught:
        decode_samples([good, good, good | wrong, good, good | wrong])
    assert str(caught.value).startswith(f"part-0.parquet, row group 0, {text}")


def test_the_error_for_a_wrong_list_element_names_the_row_of_the_list():
    schema = FieldsConfig.model_validate(
        {
            "fields": {
                "a": {"type": "id_list", "num_embeddings": 5, "hash": False},
                "b": {"type": "id_list", "num_embeddings": 5},
            }
        }
    ).to_schema()
    good = {"a": pa.array([[1, None], None, [], [2, 3], [None, 4]]), "b": pa.array([["1"]] * 5)}
    outside = pa.table(good | {"a": pa.array([[1, None], None, [], [None, 2, 5], [9]])})
    with pytest.raises(InputError, match=r"p, column a, row 3: id 5 with hash: false"):
        decode(outside, schema, "p", labelled=False)
    no_integer = pa.table(good | {"b": pa.array([["1", None], None, [], ["2", "02"], ["x"]])})
    with pytest.raises(InputError, match=r"p, column b, row 3: '02' is no 64-bit integer"):
        decode(no_integer, schema, "p", labelled=False)
    batch = to_batch(decode(pa.table(good), schema, "p", labelled=False), schema, 0)
    assert batch.ids["a"].values().tolist() == [1, 2, 3, 4]


def test_chunks_with_different_dictionaries_are_decoded_as_one_column():
    schema = FieldsConfig.model_validate(
        {"fields": {"a": {"type": "id", "num_embeddings": 10**6, "values": "string"}}}
    ).to_schema()
    parts = [["x", "y", None], ["y", "z"], ["w", None]]
    chunked = pa.table({"a": pa.chunked_array([pa.array(part).dictionary_encode() for part in parts])})
    plain = pa.table({"a": pa.array(list(itertools.chain(*parts)))})
    actual, expected = (decode(table, schema, "p", labelled=False).columns for table in (chunked, plain))
    assert actual.equals(expected)


def test_without_labels_only_the_columns_of_fields_are_read():
    rows = decode(table_of([]).select(SCHEMA.names), SCHEMA, "p", labelled=False)
    assert len(rows) == 0
    sample = dict.fromkeys(SCHEMA.names)
    table = pa.Table.from_pylist([sample, sample], pa.schema([(name, COLUMN_TYPES[name]) for name in SCHEMA.names]))
    rows = decode(table, SCHEMA, "p", labelled=False)
    batch = to_batch(rows, SCHEMA, 0)
    assert [batch.label.tolist(), batch.weight.tolist(), batch.user.tolist()] == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("seen", "shares", "text"),
    [
        ([[1], [2, 3]], [[1.0], [1.0]], "row 1: 2 ids but 1 weights; there must be one weight per id"),
        ([[1], [2]], [[1.0], None], "row 1: 1 ids but 0 weights"),
        ([[1], [2]], [[1.0], [-1.0]], "row 1: the weight of an id is -1.0; allowed is a finite number of at least 0"),
        ([[1], [2]], [[None], [1.0]], "row 0: the weight of an id is null or NaN"),
    ],
)
def test_the_error_for_a_wrong_weight_names_its_row(seen, shares, text):
    table = weighted_table([{"seen": None, "bought": None}] * 2)
    table = table.set_column(1, "seen", pa.array(seen)).set_column(2, "shares", pa.array(shares))
    with pytest.raises(InputError) as caught:
        decode(table, WEIGHTED_SCHEMA, "p", labelled=False)
    assert str(caught.value).startswith(f"p, column seen, {text}")


def test_ids_outside_the_vocabulary_count_as_one_id():
    fields = {
        "a": {"type": "id", "num_embeddings": 10**6, "min_count": 2},
        "b": {"type": "id_list", "num_embeddings": 10**6, "table": "a", "min_count": 2},
    }
    vocabulary = Vocabulary.from_ids(np.array([-5, 3, 7]))
    statistics = Statistics(rows={"train": 4}, label_rate=0.5, vocabularies={"a": vocabulary, "b": vocabulary})
    schema = FieldsConfig.model_validate({"fields": fields}).to_schema(statistics)
    table = pa.table({"a": [3, None, 8, 9, -5], "b": [[3, 7], [], None, [8, 3], [9]]})
    ids = bags(to_batch(decode(table, schema, "p", labelled=False), schema, 0))

    def row(value):
        return hashed(value, "a", 10**6)

    rare = row(int(RARE_ID))
    assert ids["a"] == [[row(3)], [], [rare], [rare], [row(-5)]]
    assert ids["b"] == [[row(3), row(7)], [], [], [rare, row(3)], [rare]]


def test_ids_of_tables_with_more_than_2_31_rows_keep_their_value():
    last = 2**33 - 1
    fields = {
        "item": {"type": "id", "num_embeddings": 2**33, "hash": False},
        "seen": {"type": "id_list", "num_embeddings": 2**33, "hash": False, "pooling": "sum"},
    }
    schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
    table = pa.table({"item": [last, None, 7], "seen": [[last, 1], [], [2**31]]})
    batch = to_batch(decode(table, schema, "p", labelled=False), schema, 0)
    assert batch.ids.lengths().tolist() == [1, 0, 1, 2, 0, 1]
    assert batch.ids.values().tolist() == [last, 7, last, 1, 2**31]
