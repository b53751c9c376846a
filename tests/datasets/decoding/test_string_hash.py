"""XXH64 of string columns: published values, and comparison with the package xxhash."""

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.decoding.string_hash import string_ids


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
def test_strings_are_hashed_as_xxhash_does(strings, column_type, start):
    column = pa.array(strings, pa.string()).cast(column_type).slice(start)
    hashes = string_ids(column).view(np.uint64).tolist()
    for text, value in zip(strings[start:], hashes, strict=True):
        assert text is None or value == xxhash.xxh64_intdigest(text.encode())
