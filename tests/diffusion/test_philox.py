"""Philox random numbers against known answers and Python integers."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.diffusion.philox import philox4x32, uniforms

words = st.integers(0, 2**32 - 1)


def reference(counter: list[int], key: int) -> list[int]:
    """Return the words of Philox4x32-10 in Python's unbounded integers, by the equations of the paper."""
    c, k = list(counter), [key % 2**32, (key >> 32) % 2**32]
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(0xD2511F53 * c[0], 2**32), divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def philox(counter: list[int], key: int) -> list[int]:
    w0, w1, w2, w3 = (torch.tensor([word]) for word in counter)
    return [int(word) for word in philox4x32((w0, w1, w2, w3), key)]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_random123(counter: list[int], key: int, words: list[int]) -> None:
    assert philox(counter, key) == words


@settings(deadline=None, derandomize=True)
@given(st.lists(words, min_size=4, max_size=4), st.integers(-(2**63), 2**64 - 1))
def test_equals_unbounded_integer_arithmetic(counter: list[int], key: int) -> None:
    assert philox(counter, key) == reference(counter, key)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(1, 5))
def test_uniforms_are_the_top_24_bits_of_the_words_under_sample_and_lane(sample: int, seed: int, lanes: int) -> None:
    result = uniforms(seed, torch.tensor([sample]), lanes)
    expected = [[w >> 8 for w in reference([sample % 2**32, sample >> 32, 0, lane], seed)] for lane in range(lanes)]
    assert result.dtype == torch.float32
    assert (result * 2**24).tolist() == [expected]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_uniforms_are_the_same_bits() -> None:
    samples = torch.arange(2**32 - 8, 2**32 + 8)
    assert torch.equal(torch.compile(uniforms, fullgraph=True)(7, samples, 3), uniforms(7, samples, 3))
