"""Initial weights of tables: a function of (seed, table, row, column) only, so the sharding plan changes no weight."""

from __future__ import annotations

import math

import torch

from asymdiffrec.datasets.schema import table_seed

MAX_FILL_ELEMENTS = 1 << 20
"""Elements filled at a time. Temporary tensors take a few times this size, for a shard of any size."""

MAX_EMBEDDING_DIM = 1 << 16
"""Every embedding_dim must be less than this: each row has this number of counters of the random generator."""


def _signed(word: int) -> int:
    """Return the int64 value with the bit pattern of an unsigned 64-bit integer."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _logical_shift_right(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift int64 bit patterns right and fill with zeros; torch's own shift copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64_stream(key: int, counter: torch.Tensor) -> torch.Tensor:
    """Return output number `counter` (int64, from 0) of splitmix64 with seed `key`, as int64 bit patterns.

    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. int64 products wrap around.
    """
    words = (counter + 1) * _GAMMA + _signed(key)
    words = (words ^ _logical_shift_right(words, 30)) * _MIX_1
    words = (words ^ _logical_shift_right(words, 27)) * _MIX_2
    return words ^ _logical_shift_right(words, 31)


def table_key(seed: int, table: str) -> int:
    """Return the key of a table's stream. One step of splitmix64 makes the streams of similar seeds unrelated."""
    return int(splitmix64_stream(seed, torch.tensor(_signed(table_seed(table)))))


def draw_rows(
    rows: torch.Tensor, embedding_dim: int, std: float, seed: int, table: str, column: int = 0
) -> torch.Tensor:
    """Return the initial weights of rows [R] int64, columns [column, column + embedding_dim), as [R, D] float32.

    The distribution is uniform in [-a, a] with a = std * sqrt(3), so its standard deviation is `std`. [-a, a] has 2^24
    equal intervals. 24 random bits select one, and its middle is the weight: so the distribution is symmetric, and
    exact in float32.
    """
    columns = torch.arange(column, column + embedding_dim, device=rows.device)
    counter = rows.unsqueeze(1) * MAX_EMBEDDING_DIM + columns
    bits = _logical_shift_right(splitmix64_stream(table_key(seed, table), counter), 40)
    return (2 * bits + 1 - (1 << 24)).to(torch.float32) * (std * math.sqrt(3) / (1 << 24))


@torch.no_grad()
def fill(block: torch.Tensor, std: float, seed: int, table: str, row: int = 0, column: int = 0) -> None:
    """Write the initial weights of rows [row, row + R) and columns [column, column + D) into `block` [R, D].

    The values are the same as from `draw_rows`.
    """
    num_rows, embedding_dim = block.shape
    if not block.numel():
        return
    step = max(1, MAX_FILL_ELEMENTS // embedding_dim)
    for first in range(0, num_rows, step):
        count = min(step, num_rows - first)
        rows = torch.arange(row + first, row + first + count, device=block.device)
        block[first : first + count] = draw_rows(rows, embedding_dim, std, seed, table, column)
