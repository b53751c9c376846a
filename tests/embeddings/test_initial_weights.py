"""Initial weights are a function of seed, table, row and column."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asymdiffrec.embeddings import initial_weights as initial

MASK = (1 << 64) - 1


def words(key: int, count: int) -> list[int]:
    """Return the first numbers of splitmix64, computed with Python's unbounded integers."""
    numbers, state = [], key & MASK
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        word = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(word ^ (word >> 31))
    return numbers


def filled(
    rows: int, columns: int, std: float = 0.05, seed: int = 1, table: str = "user", **offset: int
) -> torch.Tensor:
    block = torch.full((rows, columns), math.nan)
    initial.fill(block, std, seed, table, **offset)
    return block


def test_splitmix64_gives_the_published_numbers():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    numbers = initial.splitmix64_stream(1234567, torch.arange(4))
    assert [number & MASK for number in numbers.tolist()] == published


@given(st.integers(0, MASK))
def test_splitmix64_equals_unbounded_integer_arithmetic(key):
    numbers = initial.splitmix64_stream(key, torch.arange(5))
    assert [number & MASK for number in numbers.tolist()] == words(key, 5)


@given(st.data())
def test_any_block_is_a_slice_of_the_whole(data):
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 24))
    seed = data.draw(st.integers(0, 2**63 - 1))
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    height, width = data.draw(st.integers(0, rows - row)), data.draw(st.integers(0, columns - column))
    whole = filled(rows, columns, seed=seed)
    part = filled(height, width, seed=seed, row=row, column=column)
    assert torch.equal(part, whole[row : row + height, column : column + width])


def test_filling_in_chunks_gives_the_same_weights(monkeypatch):
    whole = filled(100, 12)
    monkeypatch.setattr(initial, "MAX_FILL_ELEMENTS", 50)
    assert torch.equal(filled(100, 12), whole)


def test_strided_blocks_are_filled_in_place():
    whole = torch.zeros(20, 16)
    initial.fill(whole[:, 4:12], 0.05, 1, "user", column=4)
    assert torch.equal(whole[:, 4:12], filled(20, 8, column=4))
    assert not whole[:, :4].any()


@pytest.mark.parametrize("std", [0.05, 1.0])
def test_weights_are_uniform_with_the_given_std(std):
    weights = filled(20000, 16, std=std).double() / std
    count = weights.numel()
    assert abs(weights.mean()) < 5 / math.sqrt(count)
    assert abs(weights.std() - 1) < 5 / math.sqrt(count)
    assert weights.abs().max() <= math.sqrt(3) * (1 + 1e-6)
    in_bins = torch.histc(weights, 10, -math.sqrt(3), math.sqrt(3))
    assert ((in_bins / count - 0.1).abs() < 5 * math.sqrt(0.09 / count)).all()


@pytest.mark.parametrize("other", [{"seed": 2}, {"table": "item"}, {"row": 1}, {"column": 1}, {"row": 2**32}])
def test_weights_depend_on_seed_table_row_and_column(other):
    first, second = filled(500, 16).double(), filled(500, 16, **other).double()
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(first.numel())
