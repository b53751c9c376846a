"""`drop_fields` as Triton kernels: one pass over the vectors forward, one backward.

A program takes a block of rows and a group of 8 fields: it draws their absorption times (two Philox calls a row),
packs what is dropped into one byte a row, and walks over the group's columns with it. Columns go in vectors that lie in
one field each, so that a masked access stays one access of 16 bytes where the widths allow it, and what is dropped is
not even read.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = tl.constexpr(8)
UNIT = tl.constexpr(2.0**-24)
TILE = 2048
"""Elements of a tile of rows and columns"""
WARPS = 2


def forward(
    clean: Tensor,
    missing: Tensor,
    sample_index: Tensor,
    seed: int,
    quantiles: Tensor,
    reach: Tensor,
    factors: Tensor,
    chunk_field: Tensor,
    group_start: Tensor,
    dtype: torch.dtype,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, columns = clean.shape
    groups, num_fields = len(group_start) - 1, missing.shape[1]
    views = clean.new_empty(2 * batch if both else batch, columns, dtype=dtype)
    step = missing.new_empty(missing.shape)
    bits = missing.new_empty(batch, groups, dtype=torch.uint8)
    if batch == 0:
        return views, step, bits
    tile = _tile(columns, num_fields, len(chunk_field))
    with torch.cuda.device_of(clean):
        _forward[triton.cdiv(batch, tile["ROWS"]) * groups,](
            clean.contiguous(),
            missing.contiguous().view(torch.uint8),
            sample_index.contiguous(),
            views,
            step.view(torch.uint8),
            bits,
            seed,
            quantiles,
            reach,
            factors,
            chunk_field,
            group_start,
            batch,
            FIELDS=num_fields,
            CELLS=len(quantiles) - 1,
            PATTERNS=len(reach),
            SEARCH=(len(reach) - 1).bit_length(),
            BOTH=both,
            enable_fp_fusion=False,  # t and the rates are to be rounded as torch rounds them
            num_warps=WARPS,
            **tile,
        )
    return views, step, bits


def backward(
    gradient: Tensor, bits: Tensor, chunk_field: Tensor, group_start: Tensor, dtype: torch.dtype, both: bool
) -> Tensor:
    (batch, groups), columns = bits.shape, gradient.shape[1]
    result = gradient.new_empty(batch, columns, dtype=dtype)
    if batch == 0:
        return result
    tile = _tile(columns, GROUP.value * groups, len(chunk_field))
    with torch.cuda.device_of(gradient):
        _backward[triton.cdiv(batch, tile["ROWS"]) * groups,](
            gradient.contiguous(),
            bits,
            result,
            chunk_field,
            group_start,
            batch,
            GROUPS=groups,
            BOTH=both,
            num_warps=WARPS,
            **tile,
        )
    return result


def _tile(columns: int, num_fields: int, chunks: int) -> dict[str, int]:
    """Sizes of a tile: columns as wide as a group of fields is on average, up to 1,024, and rows to fill it."""
    vector = math.gcd(16, columns // chunks)
    wide = min(1024, max(vector, triton.next_power_of_2(GROUP.value * columns // num_fields)))
    return {"COLUMNS": columns, "CHUNK": columns // chunks, "VECTOR": vector, "WIDE": wide, "ROWS": TILE // wide}


@triton.jit(do_not_specialize=["seed", "batch"])
def _forward(
    clean,
    missing,
    sample_index,
    views,
    step,
    bits,
    seed,
    quantiles,
    reach,
    factors,
    chunk_field,
    group_start,
    batch,
    FIELDS: tl.constexpr,
    CELLS: tl.constexpr,
    PATTERNS: tl.constexpr,
    SEARCH: tl.constexpr,
    BOTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    groups: tl.constexpr = (FIELDS + GROUP - 1) // GROUP
    group = tl.program_id(0) % groups
    rows = tl.program_id(0) // groups * ROWS + tl.arange(0, ROWS).to(tl.int64)
    in_batch = rows < batch
    sample = tl.load(sample_index + rows, mask=in_batch, other=0)
    low, high = (sample & 0xFFFFFFFF).to(tl.uint32), ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros((ROWS,), tl.uint32)
    word_0, word_1, _, _ = tl.philox(seed, low, high, zero, zero)
    time = _time(quantiles, _uniform(word_0), CELLS)
    pattern = _pattern(reach, _uniform(word_1), PATTERNS, SEARCH)

    fields = group * GROUP + tl.arange(0, GROUP)
    inside = in_batch[:, None] & (fields < FIELDS)[None, :]
    factor = tl.load(factors + pattern[:, None] * FIELDS + fields[None, :], mask=inside, other=0.0)
    dropped = _absorption_times(seed, low, high, group, ROWS) < time[:, None] * factor
    at_field = rows[:, None] * FIELDS + fields[None, :]
    dropped = dropped | (tl.load(missing + at_field, mask=inside, other=0) != 0)
    tl.store(step + at_field, dropped.to(tl.uint8), mask=inside)
    byte = tl.sum((dropped & inside).to(tl.int32) << tl.arange(0, GROUP)[None, :], axis=1)
    tl.store(bits + rows * groups + group, byte.to(tl.uint8), mask=in_batch)

    noisy_view = views + batch.to(tl.int64) * COLUMNS if BOTH else views
    last = tl.load(group_start + group + 1) // VECTOR
    for first in range(tl.load(group_start + group) // VECTOR, last, WIDE // VECTOR):
        at, inside_tile, kept = _columns(first, last, rows, in_batch, byte, chunk_field, COLUMNS, CHUNK, VECTOR, WIDE)
        if BOTH:
            x = tl.load(clean + at, mask=inside_tile, other=0.0).to(views.dtype.element_ty)
            tl.store(views + at, x, mask=inside_tile)
            tl.store(noisy_view + at, tl.where(kept, x, 0.0), mask=inside_tile)
        else:
            x = tl.load(clean + at, mask=kept, other=0.0).to(views.dtype.element_ty)
            tl.store(noisy_view + at, x, mask=inside_tile)


@triton.jit(do_not_specialize=["batch"])
def _backward(
    gradient,
    bits,
    result,
    chunk_field,
    group_start,
    batch,
    GROUPS: tl.constexpr,
    BOTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    exact: tl.constexpr = tl.float64 if result.dtype.element_ty == tl.float64 else tl.float32
    group = tl.program_id(0) % GROUPS
    rows = tl.program_id(0) // GROUPS * ROWS + tl.arange(0, ROWS).to(tl.int64)
    in_batch = rows < batch
    byte = tl.load(bits + rows * GROUPS + group, mask=in_batch, other=0).to(tl.int32)
    of_noisy = gradient + batch.to(tl.int64) * COLUMNS if BOTH else gradient
    last = tl.load(group_start + group + 1) // VECTOR
    for first in range(tl.load(group_start + group) // VECTOR, last, WIDE // VECTOR):
        at, inside, kept = _columns(first, last, rows, in_batch, byte, chunk_field, COLUMNS, CHUNK, VECTOR, WIDE)
        total = tl.load(of_noisy + at, mask=kept, other=0.0).to(exact)
        if BOTH:
            total += tl.load(gradient + at, mask=inside, other=0.0).to(exact)
        tl.store(result + at, total.to(result.dtype.element_ty), mask=inside)


@triton.jit
def _columns(
    first,
    last,
    rows,
    in_batch,
    byte,
    chunk_field,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Offsets of a tile [rows, vectors, columns of a vector], which of them are inside, and which are kept as well."""
    vectors = first + tl.arange(0, WIDE // VECTOR)
    in_group = vectors < last
    field = tl.load(chunk_field + vectors * VECTOR // CHUNK, mask=in_group, other=0).to(tl.int32)
    columns = vectors[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    at = (rows * COLUMNS)[:, None, None] + columns[None, :, :]
    inside = in_batch[:, None] & in_group[None, :]
    kept = inside & ((byte[:, None] >> (field % GROUP)[None, :] & 1) == 0)
    return at, inside[:, :, None], kept[:, :, None]


@triton.jit
def _absorption_times(seed, low, high, group, ROWS: tl.constexpr):
    """tau [ROWS, 8] of a group: words 0 to 3 of two lanes."""
    zero = tl.zeros((ROWS, GROUP // 4), tl.uint32)
    lane = (1 + group * (GROUP // 4) + tl.arange(0, GROUP // 4)).to(tl.uint32)
    word_0, word_1, word_2, word_3 = tl.philox(
        seed, low[:, None] + zero, high[:, None] + zero, zero, lane[None, :] + zero
    )
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    return _uniform(tl.reshape(words, (ROWS, GROUP)))


@triton.jit
def _uniform(word):
    return (word >> 8).to(tl.int32).to(tl.float32) * UNIT


@triton.jit
def _time(quantiles, uniform, CELLS: tl.constexpr):
    place = uniform * CELLS
    cell = place.to(tl.int32)
    low, high = tl.load(quantiles + cell), tl.load(quantiles + cell + 1)
    return low + (place - cell.to(tl.float32)) * (high - low)


@triton.jit
def _pattern(reach, uniform, PATTERNS: tl.constexpr, SEARCH: tl.constexpr):
    """How many of reach are at most `uniform`, by bisection in SEARCH steps."""
    pattern = tl.zeros_like(uniform).to(tl.int32)
    for step in tl.static_range(SEARCH):
        probe = pattern + (1 << (SEARCH - 1 - step))
        reached = tl.load(reach + probe - 1, mask=probe < PATTERNS, other=2.0) <= uniform
        pattern = tl.where(reached, probe, pattern)
    return pattern
