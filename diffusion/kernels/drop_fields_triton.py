"""`drop_fields` as Triton kernels: one pass over the vectors in each direction.

A program handles a block of rows and the 8 fields of one byte of the packed mask. It draws the absorption times of the
fields (two Philox calls per row), packs the mask into one byte per row, and loops over the columns of the 8 fields.
Columns are read as short vectors. Each short vector belongs to one field. Therefore a masked load or store is a single
access of 16 bytes if the field widths allow it. Columns of masked fields are not read.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

FIELDS_PER_BYTE = tl.constexpr(8)
"""Same value as in drop_fields.py; a kernel can read only tl.constexpr globals"""
UNIFORM_STEP = tl.constexpr(2.0**-24)
"""Distance between two uniforms, see `philox.uniforms`"""
TILE_ELEMENTS = 2048
"""Number of elements in a tile of rows and columns"""
WARPS_PER_PROGRAM = 2


def forward(
    clean: Tensor,
    missing: Tensor,
    sample_index: Tensor,
    seed: int,
    quantiles: Tensor,
    pattern_cdf: Tensor,
    factors: Tensor,
    chunk_field: Tensor,
    byte_start: Tensor,
    dtype: torch.dtype,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return views, mask and packed mask, see `drop_fields`."""
    batch, columns = clean.shape
    num_bytes, num_fields = len(byte_start) - 1, missing.shape[1]
    views = clean.new_empty(2 * batch if both else batch, columns, dtype=dtype)
    mask = missing.new_empty(missing.shape)
    packed = missing.new_empty(batch, num_bytes, dtype=torch.uint8)
    if batch == 0:
        return views, mask, packed
    tile = _tile(columns, num_fields, len(chunk_field))
    with torch.cuda.device_of(clean):
        _forward[triton.cdiv(batch, tile["ROWS"]) * num_bytes,](
            clean.contiguous(),
            missing.contiguous().view(torch.uint8),
            sample_index.contiguous(),
            views,
            mask.view(torch.uint8),
            packed,
            seed,
            quantiles,
            pattern_cdf,
            factors,
            chunk_field,
            byte_start,
            batch,
            FIELDS=num_fields,
            CELLS=len(quantiles) - 1,
            PATTERNS=len(pattern_cdf),
            SEARCH=(len(pattern_cdf) - 1).bit_length(),
            BOTH=both,
            enable_fp_fusion=False,  # t and the rates must have the same rounding as in torch
            num_warps=WARPS_PER_PROGRAM,
            **tile,
        )
    return views, mask, packed


def backward(
    gradient: Tensor, packed: Tensor, chunk_field: Tensor, byte_start: Tensor, dtype: torch.dtype, both: bool
) -> Tensor:
    """Return the gradient of `clean` [B, sum D_n], given the gradient of the views and the packed mask."""
    (batch, num_bytes), columns = packed.shape, gradient.shape[1]
    result = gradient.new_empty(batch, columns, dtype=dtype)
    if batch == 0:
        return result
    tile = _tile(columns, FIELDS_PER_BYTE.value * num_bytes, len(chunk_field))
    with torch.cuda.device_of(gradient):
        _backward[triton.cdiv(batch, tile["ROWS"]) * num_bytes,](
            gradient.contiguous(),
            packed,
            result,
            chunk_field,
            byte_start,
            batch,
            BYTES=num_bytes,
            BOTH=both,
            num_warps=WARPS_PER_PROGRAM,
            **tile,
        )
    return result


def _tile(columns: int, num_fields: int, chunks: int) -> dict[str, int]:
    """Return the sizes of a tile of TILE_ELEMENTS elements.

    The width of a tile is about the width of 8 fields, but at most 1,024 columns.
    """
    vector = math.gcd(16, columns // chunks)
    wide = min(1024, max(vector, triton.next_power_of_2(FIELDS_PER_BYTE.value * columns // num_fields)))
    return {
        "COLUMNS": columns,
        "CHUNK": columns // chunks,
        "VECTOR": vector,
        "WIDE": wide,
        "ROWS": TILE_ELEMENTS // wide,
    }


@triton.jit(do_not_specialize=["seed", "batch"])
def _forward(
    clean,
    missing,
    sample_index,
    views,
    masked,
    packed,
    seed,
    quantiles,
    pattern_cdf,
    factors,
    chunk_field,
    byte_start,
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
    num_bytes: tl.constexpr = (FIELDS + FIELDS_PER_BYTE - 1) // FIELDS_PER_BYTE
    byte_index = tl.program_id(0) % num_bytes
    rows = tl.program_id(0) // num_bytes * ROWS + tl.arange(0, ROWS).to(tl.int64)
    in_batch = rows < batch
    sample = tl.load(sample_index + rows, mask=in_batch, other=0)
    low, high = (sample & 0xFFFFFFFF).to(tl.uint32), ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = tl.zeros((ROWS,), tl.uint32)
    word_0, word_1, _, _ = tl.philox(seed, low, high, zero, zero)
    level = _noise_level(quantiles, _uniform(word_0), CELLS)
    pattern = _pattern(pattern_cdf, _uniform(word_1), PATTERNS, SEARCH)

    fields = byte_index * FIELDS_PER_BYTE + tl.arange(0, FIELDS_PER_BYTE)
    inside = in_batch[:, None] & (fields < FIELDS)[None, :]
    factor = tl.load(factors + pattern[:, None] * FIELDS + fields[None, :], mask=inside, other=0.0)
    dropped = _absorption_times(seed, low, high, byte_index, ROWS) < level[:, None] * factor
    at_field = rows[:, None] * FIELDS + fields[None, :]
    dropped = dropped | (tl.load(missing + at_field, mask=inside, other=0) != 0)
    tl.store(masked + at_field, dropped.to(tl.uint8), mask=inside)
    byte = tl.sum((dropped & inside).to(tl.int32) << tl.arange(0, FIELDS_PER_BYTE)[None, :], axis=1)
    tl.store(packed + rows * num_bytes + byte_index, byte.to(tl.uint8), mask=in_batch)

    noisy_view = views + batch.to(tl.int64) * COLUMNS if BOTH else views
    last = tl.load(byte_start + byte_index + 1) // VECTOR
    for first in range(tl.load(byte_start + byte_index) // VECTOR, last, WIDE // VECTOR):
        offsets, inside_tile, visible = _columns(
            first, last, rows, in_batch, byte, chunk_field, COLUMNS, CHUNK, VECTOR, WIDE
        )
        if BOTH:
            x = tl.load(clean + offsets, mask=inside_tile, other=0.0).to(views.dtype.element_ty)
            tl.store(views + offsets, x, mask=inside_tile)
            tl.store(noisy_view + offsets, tl.where(visible, x, 0.0), mask=inside_tile)
        else:
            x = tl.load(clean + offsets, mask=visible, other=0.0).to(views.dtype.element_ty)
            tl.store(noisy_view + offsets, x, mask=inside_tile)


@triton.jit(do_not_specialize=["batch"])
def _backward(
    gradient,
    packed,
    result,
    chunk_field,
    byte_start,
    batch,
    BYTES: tl.constexpr,
    BOTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    sum_type: tl.constexpr = tl.float64 if result.dtype.element_ty == tl.float64 else tl.float32
    byte_index = tl.program_id(0) % BYTES
    rows = tl.program_id(0) // BYTES * ROWS + tl.arange(0, ROWS).to(tl.int64)
    in_batch = rows < batch
    byte = tl.load(packed + rows * BYTES + byte_index, mask=in_batch, other=0).to(tl.int32)
    noisy_gradient = gradient + batch.to(tl.int64) * COLUMNS if BOTH else gradient
    last = tl.load(byte_start + byte_index + 1) // VECTOR
    for first in range(tl.load(byte_start + byte_index) // VECTOR, last, WIDE // VECTOR):
        offsets, inside, visible = _columns(
            first, last, rows, in_batch, byte, chunk_field, COLUMNS, CHUNK, VECTOR, WIDE
        )
        total = tl.load(noisy_gradient + offsets, mask=visible, other=0.0).to(sum_type)
        if BOTH:
            total += tl.load(gradient + offsets, mask=inside, other=0.0).to(sum_type)
        tl.store(result + offsets, total.to(result.dtype.element_ty), mask=inside)


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
    """Return the offsets [rows, vectors, columns of a vector] of a tile, and two masks for loads and stores.

    The first mask is true if the offset exists. The second mask is true if the field is also not masked.
    """
    vectors = first + tl.arange(0, WIDE // VECTOR)
    in_byte = vectors < last
    field = tl.load(chunk_field + vectors * VECTOR // CHUNK, mask=in_byte, other=0).to(tl.int32)
    columns = vectors[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    offsets = (rows * COLUMNS)[:, None, None] + columns[None, :, :]
    inside = in_batch[:, None] & in_byte[None, :]
    visible = inside & ((byte[:, None] >> (field % FIELDS_PER_BYTE)[None, :] & 1) == 0)
    return offsets, inside[:, :, None], visible[:, :, None]


@triton.jit
def _absorption_times(seed, low, high, byte_index, ROWS: tl.constexpr):
    """Return tau [ROWS, 8] for the 8 fields of a byte. The values come from words 0 to 3 of two lanes."""
    zero = tl.zeros((ROWS, FIELDS_PER_BYTE // 4), tl.uint32)
    lane = (1 + byte_index * (FIELDS_PER_BYTE // 4) + tl.arange(0, FIELDS_PER_BYTE // 4)).to(tl.uint32)
    word_0, word_1, word_2, word_3 = tl.philox(
        seed, low[:, None] + zero, high[:, None] + zero, zero, lane[None, :] + zero
    )
    words = tl.join(tl.join(word_0, word_2), tl.join(word_1, word_3))
    return _uniform(tl.reshape(words, (ROWS, FIELDS_PER_BYTE)))


@triton.jit
def _uniform(word):
    """Return the uniforms of Philox words, see `philox.uniforms`."""
    return (word >> 8).to(tl.int32).to(tl.float32) * UNIFORM_STEP


@triton.jit
def _noise_level(quantiles, uniform, CELLS: tl.constexpr):
    """Return t for uniforms, see `drop_fields_eager.noise_level`."""
    position = uniform * CELLS
    cell = position.to(tl.int32)
    low, high = tl.load(quantiles + cell), tl.load(quantiles + cell + 1)
    return low + (position - cell.to(tl.float32)) * (high - low)


@triton.jit
def _pattern(pattern_cdf, uniform, PATTERNS: tl.constexpr, SEARCH: tl.constexpr):
    """Return the number of elements of pattern_cdf that are at most `uniform`, by bisection in SEARCH steps."""
    pattern = tl.zeros_like(uniform).to(tl.int32)
    for level in tl.static_range(SEARCH):
        probe = pattern + (1 << (SEARCH - 1 - level))
        reached = tl.load(pattern_cdf + probe - 1, mask=probe < PATTERNS, other=2.0) <= uniform
        pattern = tl.where(reached, probe, pattern)
    return pattern
