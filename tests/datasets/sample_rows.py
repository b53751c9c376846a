"""Samples of every column type with random values, and Python references of their hashed ids."""

import itertools

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import strategies as st

from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.statistics import NumericStatistics, Statistics

NUM_EMBEDDINGS = 11
SCHEMA = FieldsConfig.model_validate(
    {
        "data": {"user": "user", "weight": "weight"},
        "fields": {
            "age": {"type": "number"},
            "history": {"type": "id_list", "num_embeddings": NUM_EMBEDDINGS, "table": "item"},
            "city": {"type": "id", "num_embeddings": NUM_EMBEDDINGS, "values": "string"},
            "item": {"type": "id", "num_embeddings": NUM_EMBEDDINGS},
            "tags": {"type": "id_list", "num_embeddings": NUM_EMBEDDINGS, "values": "string"},
            "slot": {"type": "id", "num_embeddings": NUM_EMBEDDINGS, "hash": False},
            "price": {"type": "number"},
        },
    }
).to_schema(Statistics(rows={"train": 9}, label_rate=0.5, numeric={"price": NumericStatistics(mean=2, std=4)}))
COLUMN_TYPES = {
    "age": pa.float64(),
    "history": pa.list_(pa.int64()),
    "city": pa.string(),
    "item": pa.int64(),
    "tags": pa.list_(pa.string()),
    "slot": pa.int32(),
    "price": pa.int64(),
    "label": pa.int8(),
    "weight": pa.float32(),
    "user": pa.int64(),
}

_ids, _words = st.integers(-(2**63), 2**63 - 1), st.text(max_size=3)
sample_lists = st.lists(
    st.fixed_dictionaries(
        {
            "age": st.none() | st.floats(-100, 100) | st.just(np.nan),
            "history": st.none() | st.lists(st.none() | _ids, max_size=4),
            "city": st.none() | _words,
            "item": st.none() | _ids,
            "tags": st.none() | st.lists(st.none() | _words, max_size=3),
            "slot": st.none() | st.integers(0, NUM_EMBEDDINGS - 1),
            "price": st.none() | st.integers(-9, 9),
            "label": st.integers(0, 1),
            "weight": st.integers(0, 5),
            "user": st.integers(0, 9),
        }
    ),
    max_size=9,
)


def table_of(samples, chunk=4):
    """Return samples as an Arrow table with several chunks."""
    schema = pa.schema(list(COLUMN_TYPES.items()))
    parts = [pa.Table.from_pylist(samples[k : k + chunk], schema) for k in range(0, len(samples), chunk)]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def decode_samples(samples):
    return decode(table_of(samples), SCHEMA, "part-0.parquet, row group 0", labelled=True)


def splitmix64(value):
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def hashed(value, table, num_embeddings=NUM_EMBEDDINGS):
    """Return the table row of an id, an integer or a string."""
    word = xxhash.xxh64_intdigest(value.encode()) if isinstance(value, str) else value % 2**64
    return splitmix64(word ^ xxhash.xxh3_64_intdigest(table.encode())) * num_embeddings // 2**64


def bag(sample, name):
    """Return the table rows of a sample's field."""
    value = sample[name]
    if name == "slot":
        return [] if value is None else [value]
    values = value if isinstance(value, list) else [value]
    table = "item" if name == "history" else name
    return [hashed(one, table) for one in values or [] if one is not None]


def bags(batch):
    """Return the ids of a batch as lists: {field: [table rows of a sample]}."""
    values = iter(batch.ids.values().tolist())
    lengths = batch.ids.lengths().view(len(batch.ids.keys()), -1).tolist()
    lists = {
        name: [list(itertools.islice(values, length)) for length in lengths_of_field]
        for name, lengths_of_field in zip(batch.ids.keys(), lengths, strict=True)
    }
    assert not list(values)
    return lists


def standardised(sample):
    """Return the values of the numeric fields, None where missing."""
    values = [sample["age"], None if sample["price"] is None else (sample["price"] - 2) / 4]
    return [None if value is None or np.isnan(value) else np.float32(value) for value in values]


WEIGHTED_SCHEMA = FieldsConfig.model_validate(
    {
        "fields": {
            "item": {"type": "id", "num_embeddings": 1000},
            "seen": {"type": "id_list", "num_embeddings": 1000, "weights": "shares", "pooling": "mean"},
            "bought": {"type": "id_list", "num_embeddings": 1000, "weights": "prices", "pooling": "sum"},
            "plain": {"type": "id_list", "num_embeddings": 1000, "pooling": "mean"},
            "summed": {"type": "id_list", "num_embeddings": 1000, "pooling": "sum"},
        }
    }
).to_schema()
weighted_lists = st.none() | st.lists(st.tuples(st.none() | st.integers(0, 99), st.integers(0, 8)), max_size=4)
weighted_samples = st.fixed_dictionaries({"seen": weighted_lists, "bought": weighted_lists})


def weighted_table(samples):
    """Return an Arrow table for WEIGHTED_SCHEMA; a list holds pairs of an id and its weight."""

    def column(name, part, column_type):
        lists = [None if row[name] is None else [pair[part] for pair in row[name]] for row in samples]
        return pa.array(lists, column_type)

    return pa.table(
        {
            "item": pa.array(range(len(samples))),
            "seen": column("seen", 0, pa.list_(pa.int64())),
            "shares": column("seen", 1, pa.list_(pa.float64())),
            "bought": column("bought", 0, pa.large_list(pa.int64())),
            "prices": column("bought", 1, pa.list_(pa.float32())),
            "plain": pa.array([[1, 2]] * len(samples), pa.list_(pa.int64())),
            "summed": pa.array([[1, 2]] * len(samples), pa.list_(pa.int64())),
        }
    )
