"""Hashes: values of the literature, a reference in Python's integers, and uniformity."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from asymdiffrec.datasets.hashing import hash_rows, splitmix64, string_ids
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
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    seed=st.integers(0, WORD - 1),
    rows=st.integers(1, 2**40),
)
def test_rows_are_the_mixed_id_modulo_the_rows(ids, seed, rows):
    found = hash_rows(np.array(ids, dtype=np.int64), seed, rows)
    assert found.dtype == np.int64
    assert found.tolist() == [mixed(value % WORD ^ seed) % rows for value in ids]


def test_rows_of_an_id_never_change():
    assert hash_rows(np.array([0, 1, -1, 123456789]), table_seed("item"), 1000).tolist() == [391, 921, 228, 947]


@pytest.mark.parametrize(
    ("text", "digest"), [("", 0x2D06800538D394C2), ("a", 0xE6C632B61E964E1F), ("abc", 0x78AF5F94892F3950)]
)
def test_strings_have_their_published_xxh3(text, digest):
    assert string_ids(pa.array([text])).view(np.uint64).tolist() == [digest]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=5), max_size=20), st.sampled_from([pa.string(), pa.large_string()]))
def test_strings_are_hashed_by_their_bytes(strings, kind):
    expected = [xxhash.xxh3_64_intdigest(text.encode()) for text in strings]
    assert string_ids(pa.array(strings, kind)).view(np.uint64).tolist() == expected


@pytest.mark.parametrize("rows", [7, 64, 1000])
@pytest.mark.parametrize("step", [1, 64, 2**32])
def test_regular_ids_spread_evenly(rows, step):
    found = hash_rows(np.arange(100 * rows, dtype=np.int64) * step, table_seed("item"), rows)
    assert chisquare(np.bincount(found, minlength=rows)).pvalue > 1e-3


def test_tables_collide_independently():
    ids, rows = np.arange(100_000), 1000
    item, user = (hash_rows(ids, table_seed(table), rows) for table in ("item", "user"))
    together = np.bincount(item * 10 // rows * 10 + user * 10 // rows, minlength=100)
    assert chisquare(together).pvalue > 1e-3
