"""Hashes: values of the literature, a reference in Python's integers, and uniformity."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from asymdiffrec.datasets.decoding.hashing import hash_rows, splitmix64, string_ids
from asymdiffrec.datasets.schema import table_seed

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64


def mixed(value: int) -> int:
    value = (value + GOLDEN) % WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB % WORD
    return value ^ value >> 31


def test_splitmix64_gives_the_published_sequence_of_seed_0():
    states = np.array([0, GOLDEN, 2 * GOLDEN % WORD], dtype=np.uint64)
    assert splitmix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert states[0] == 0, "the argument is left as it was"


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    ids=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=40),
    seed=st.integers(0, WORD - 1),
    rows=st.integers(1, 2**40),
    start=st.integers(0, 9),
)
def test_rows_are_the_mixed_id_times_the_rows(ids, seed, rows, start):
    found = hash_rows(pa.array(ids, pa.int64()).slice(start), seed, rows)
    assert found.dtype == (np.int32 if rows <= 2**31 else np.int64)
    expected = [-1 if value is None else mixed(value % WORD ^ seed) * rows // WORD for value in ids[start:]]
    assert found.tolist() == expected


def test_rows_of_an_id_never_change():
    ids = pa.array([0, 1, -1, None, 123456789])
    assert hash_rows(ids, table_seed("item"), 1000).tolist() == [873, 381, 168, -1, 252]


@pytest.mark.parametrize(
    ("text", "digest"), [("", 0xEF46DB3751D8E999), ("a", 0xD24EC4F1A98C6E5B), ("abc", 0x44BC2CF5AD770999)]
)
def test_strings_have_their_published_xxh64(text, digest):
    assert string_ids(pa.array([text])).view(np.uint64).tolist() == [digest]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.lists(st.none() | st.text(max_size=5) | st.text(min_size=20, max_size=99), max_size=20),
    st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]),
    st.integers(0, 3),
)
def test_strings_are_hashed_by_their_bytes(strings, kind, start):
    column = pa.array(strings, pa.string()).cast(kind).slice(start)
    found = string_ids(column).view(np.uint64).tolist()
    expected = [xxhash.xxh64_intdigest((text or "").encode()) for text in strings[start:]]
    present = [text is not None for text in strings[start:]]
    assert [one for one, there in zip(found, present, strict=True) if there] == [
        one for one, there in zip(expected, present, strict=True) if there
    ]


@pytest.mark.parametrize("rows", [7, 64, 1000])
@pytest.mark.parametrize("step", [1, 64, 2**32])
def test_regular_ids_spread_evenly(rows, step):
    found = hash_rows(pa.array(np.arange(100 * rows, dtype=np.int64) * step), table_seed("item"), rows)
    assert chisquare(np.bincount(found, minlength=rows)).pvalue > 1e-3


def test_tables_collide_independently():
    ids, rows = pa.array(np.arange(100_000)), 1000
    item, user = (hash_rows(ids, table_seed(table), rows) for table in ("item", "user"))
    together = np.bincount(item * 10 // rows * 10 + user * 10 // rows, minlength=100)
    assert chisquare(together).pvalue > 1e-3
