"""Initial weights of tables: a function of (seed, table, row, column) alone, so that no plan changes the model."""

from __future__ import annotations

import math

import torch

from asymdiffrec.datasets.schema import table_seed

CHUNK = 1 << 20
"""Elements that are filled at a time: temporaries stay at a few times this, however large the shard."""

COLUMNS = 1 << 16
"""Columns that the counter has room for."""


def _signed(word: int) -> int:
    """The 64-bit pattern as torch's int64 holds it."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift: torch's own copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64_stream(key: int, counter: torch.Tensor) -> torch.Tensor:
    """Output number `counter` (int64, from 0) of the splitmix64 generator seeded with `key`, as int64 bit patterns.

    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. int64 products wrap around.
    """
    words = (counter + 1) * _GAMMA + _signed(key)
    words = (words ^ _shifted(words, 30)) * _MIX_1
    words = (words ^ _shifted(words, 27)) * _MIX_2
    return words ^ _shifted(words, 31)


def table_key(seed: int, table: str) -> int:
    """The key of a table's stream; the step of splitmix64 keeps seeds that differ by little from related streams."""
    return int(splitmix64_stream(seed, torch.tensor(_signed(table_seed(table)))))


def draw(numbers: torch.Tensor, columns: int, std: float, seed: int, table: str, column: int = 0) -> torch.Tensor:
    """Initial weights of the rows with some numbers [R] int64: columns [column, column + D) of each, [R, D] float32.

    Uniform in [-a, a] with a = std * sqrt(3), so of standard deviation `std`. The 24 random bits are taken at the
    middle of their interval, which makes the distribution symmetric and exact in float32.
    """
    places = torch.arange(column, column + columns, device=numbers.device)
    bits = _shifted(splitmix64_stream(table_key(seed, table), numbers.unsqueeze(1) * COLUMNS + places), 40)
    return (2 * bits + 1 - (1 << 24)).to(torch.float32) * (std * math.sqrt(3) / (1 << 24))


@torch.no_grad()
def fill(block: torch.Tensor, std: float, seed: int, table: str, row: int = 0, column: int = 0) -> None:
    """Write the initial weights of rows [row, row + R) and columns [column, column + D) of a table into `block` [R, D],
    as `draw` gives them."""
    rows, columns = block.shape
    if not block.numel():
        return
    step = max(1, CHUNK // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        numbers = torch.arange(row + first, row + first + count, device=block.device)
        block[first : first + count] = draw(numbers, columns, std, seed, table, column)
