"""Vocabularies: their ids, their encoding, and the replacement of rare ids."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asymdiffrec.datasets.statistics.vocabulary import RARE_ID, Vocabulary

IDS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5), max_size=40)


@settings(derandomize=True, deadline=None)
@given(IDS, IDS)
def test_ids_outside_the_vocabulary_become_one_id(frequent: list[int], others: list[int]) -> None:
    vocabulary = Vocabulary.model_validate_json(Vocabulary.from_ids(np.array(frequent, np.int64)).model_dump_json())
    assert vocabulary.sorted_ids.tolist() == sorted(set(frequent))
    assert vocabulary.size == len(set(frequent))
    replaced = vocabulary.replace_rare(np.array(others + frequent, np.int64))
    assert replaced.tolist() == [identity if identity in frequent else int(RARE_ID) for identity in others + frequent]


def test_neighbouring_ids_are_encoded_compactly() -> None:
    assert len(Vocabulary.from_ids(np.arange(100_000) * 7).ids) < 10_000


@pytest.mark.parametrize(
    "ids",
    ["?", base64.b64encode(b"damaged").decode(), base64.b64encode(zlib.compress(b"seven..")).decode()],
    ids=["base64", "deflate", "words"],
)
def test_damaged_ids_are_an_error(ids: str) -> None:
    with pytest.raises(ValidationError, match="the ids of the vocabulary cannot be read"):
        Vocabulary(size=1, ids=ids)


def test_absent_ids_are_an_error() -> None:
    with pytest.raises(ValidationError, match="has 2 ids instead of 3"):
        Vocabulary(size=3, ids=Vocabulary.from_ids(np.arange(2)).ids)
