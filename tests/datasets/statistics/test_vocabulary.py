"""Vocabularies: what they hold, how they are written, and the ids they fold into one."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asymdiffrec.datasets.statistics.vocabulary import RARE, Vocabulary

IDS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5), max_size=40)


@settings(derandomize=True, deadline=None)
@given(IDS, IDS)
def test_ids_outside_become_one(known: list[int], asked: list[int]) -> None:
    vocabulary = Vocabulary.model_validate_json(Vocabulary.of(np.array(known, np.int64)).model_dump_json())
    assert vocabulary.sorted.tolist() == sorted(set(known))
    assert vocabulary.size == len(set(known))
    folded = vocabulary.fold(np.array(asked + known, np.int64))
    assert folded.tolist() == [identity if identity in known else int(RARE) for identity in asked + known]


def test_small_steps_take_little_room() -> None:
    assert len(Vocabulary.of(np.arange(100_000) * 7).ids) < 10_000


@pytest.mark.parametrize(
    "ids",
    ["?", base64.b64encode(b"damaged").decode(), base64.b64encode(zlib.compress(b"seven..")).decode()],
    ids=["base64", "deflate", "words"],
)
def test_damage_is_seen(ids: str) -> None:
    with pytest.raises(ValidationError, match="the ids of the vocabulary cannot be read"):
        Vocabulary(size=1, ids=ids)


def test_ids_that_were_cut_off_are_missed() -> None:
    with pytest.raises(ValidationError, match="holds 2 ids instead of 3"):
        Vocabulary(size=3, ids=Vocabulary.of(np.arange(2)).ids)
