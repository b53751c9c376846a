"""Hashing of 64-bit ids: published values, a reference in Python's integers, and uniformity."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from asymdiffrec.datasets.decoding.id_hash import hash_ids, splitmix64
from asymdiffrec.datasets.schema import table_seed

GOLDEN = 0x9E3779B97F4A7C15
WORD = 2**64


def reference_splitmix64(value: int) -> int:
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
    size=st.integers(1, 2**40),
    start=st.integers(0, 9),
)
def test_the_hash_is_the_high_word_of_the_mixed_id_times_the_size(ids, seed, size, start):
    hashed = hash_ids(pa.array(ids, pa.int64()).slice(start), seed, size)
    assert hashed.dtype == (np.int32 if size <= 2**31 else np.int64)
    assert hashed.tolist() == [
        -1 if value is None else reference_splitmix64(value % WORD ^ seed) * size // WORD for value in ids[start:]
    ]


def test_hashes_never_change():
    ids = pa.array([0, 1, -1, None, 123456789])
    assert hash_ids(ids, table_seed("item"), 1000).tolist() == [873, 381, 168, -1, 252]


@pytest.mark.parametrize("size", [7, 64, 1000])
@pytest.mark.parametrize("step", [1, 64, 2**32])
def test_regular_ids_spread_evenly(size, step):
    hashed = hash_ids(pa.array(np.arange(100 * size, dtype=np.int64) * step), table_seed("item"), size)
    assert chisquare(np.bincount(hashed, minlength=size)).pvalue > 1e-3


def test_tables_collide_independently():
    ids, size = pa.array(np.arange(100_000)), 1000
    item, user = (hash_ids(ids, table_seed(table), size) for table in ("item", "user"))
    pairs = np.bincount(item * 10 // size * 10 + user * 10 // size, minlength=100)
    assert chisquare(pairs).pvalue > 1e-3
