"""The forward process as one torch operator: it draws the fields to drop, and sets their vectors to zero.

Autograd, `torch.compile` and export see a single operator. On CUDA the operator runs one Triton kernel in the forward
pass and one Triton kernel in the backward pass. On other devices it runs plain torch. All devices draw the same bits.
The dropped fields of a sample depend only on the seed and the sample index.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asymdiffrec.diffusion.kernels import drop_fields_eager as eager
from asymdiffrec.field_layout import FieldLayout

FIELDS_PER_BYTE = 8
"""Number of fields in a byte of the packed mask, which is saved for the backward pass"""


class DropLaw(NamedTuple):
    """Distribution of the drop rates: field n is dropped with probability min(1, t factor_pn).

    The noise level is t = Q(u_0), and the uniform u_1 draws the pattern p.
    """

    quantiles: Tensor
    """[K + 1], the quantile function Q on an even grid, interpolated linearly. It is exact for a uniform distribution
    of t (K = 1); for other distributions the error of a probability is at most 1 / K. If K is a power of two, the
    position in the grid is not rounded."""
    pattern_cdf: Tensor
    """[P], cumulative probabilities: pattern p is drawn if pattern_cdf_(p-1) <= u_1 < pattern_cdf_p. The last element
    is 1."""
    factors: Tensor
    """[P, N], factors >= 0 of the drop rates"""


class ColumnChunks(NamedTuple):
    """The columns of a `FieldLayout` in the two forms that the kernels read."""

    chunk_field: Tensor
    """[K] int64, the index of the field of each of K chunks. A chunk has gcd(D_1 .. D_N) columns, which all belong to
    one field. If all fields have the same width, each field is one chunk."""
    byte_start: Tensor
    """[ceil(N / 8) + 1] int32, the first column of each group of 8 fields, then sum D_n"""

    @classmethod
    def of(cls, layout: FieldLayout) -> ColumnChunks:
        """Return the chunks of a layout."""
        byte_start = [*layout.offsets[:-1:FIELDS_PER_BYTE], layout.total_width]
        return cls(
            layout.field_of_column[:: math.gcd(*layout.widths)].contiguous(),
            torch.tensor(byte_start, dtype=torch.int32),
        )


def drop_fields(
    clean: Tensor,
    missing: Tensor,
    sample_index: Tensor,
    seed: int,
    law: DropLaw,
    chunks: ColumnChunks,
    *,
    both_as: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x_t and the mask s for x_0 and m: s_n = missing_n or tau_n < rate_n; vectors of masked fields become +0.

    clean: [B, sum D_n]; missing: [B, N] bool; sample_index: [B] int64, index of the sample in the run; seed: 64 bits.

    Returns noisy [B, sum D_n] and mask [B, N] bool. If `both_as` is a dtype, the first result has both views,
    [2 B, sum D_n] of this dtype: the rows of clean, then the rows of noisy. A single pass writes both views, and a
    single pass computes their gradient.
    """
    views, mask, _ = _drop_fields(
        clean, missing, sample_index, seed, *law, *chunks, both_as or clean.dtype, both_as is not None
    )
    return views, mask


@torch.library.custom_op("asymdiffrec::drop_fields", mutates_args=())
def _drop_fields(
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
    """Return views, mask and packed mask [B, ceil(N / 8)] uint8: field n is bit n % 8 of byte n // 8."""
    return eager.forward(
        clean, missing, sample_index, seed, quantiles, pattern_cdf, factors, chunk_field, dtype=dtype, both=both
    )


@torch.library.custom_op("asymdiffrec::drop_fields_backward", mutates_args=())
def _drop_fields_backward(
    gradient: Tensor, packed: Tensor, chunk_field: Tensor, byte_start: Tensor, dtype: torch.dtype, both: bool
) -> Tensor:
    """Return the gradient of clean [B, sum D_n], given the gradient of the views."""
    return eager.backward(gradient, packed, chunk_field, dtype=dtype, both=both)


@_drop_fields.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from asymdiffrec.diffusion.kernels import drop_fields_triton  # only torch's CUDA builds include triton

    return drop_fields_triton.forward(*arguments)


@_drop_fields_backward.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from asymdiffrec.diffusion.kernels import drop_fields_triton

    return drop_fields_triton.backward(*arguments)


@_drop_fields.register_fake
def _(clean: Tensor, missing: Tensor, sample_index: Tensor, seed: int, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, byte_start, dtype, both = rest
    batch, columns = clean.shape
    return (
        clean.new_empty(2 * batch if both else batch, columns, dtype=dtype),
        missing.new_empty(missing.shape),
        missing.new_empty(batch, len(byte_start) - 1, dtype=torch.uint8),
    )


@_drop_fields_backward.register_fake
def _(gradient: Tensor, packed: Tensor, *rest: Any) -> Tensor:
    return gradient.new_empty(len(packed), gradient.shape[1], dtype=rest[2])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    clean, *_, chunk_field, byte_start, _, both = inputs
    _, mask, packed = output
    ctx.mark_non_differentiable(mask, packed)
    ctx.save_for_backward(packed, chunk_field, byte_start)
    ctx.dtype, ctx.both = clean.dtype, both


def _backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return _drop_fields_backward(gradient, *ctx.saved_tensors, ctx.dtype, ctx.both), *[None] * 10


_drop_fields.register_autograd(_backward, setup_context=_save_for_backward)
