"""The forward process as one operator of torch: which fields a sample loses, and its vectors without them.

Autograd, `torch.compile` and export see one operator. On CUDA it is one Triton kernel each way, elsewhere plain torch;
both draw the same bits. What a sample loses depends on (seed, sample index) alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asymdiffrec.diffusion.kernels import drop_fields_eager as eager
from asymdiffrec.field_layout import FieldLayout

GROUP = 8
"""Fields whose bits share a byte of the mask that is kept for the backward pass."""


class DropLaw(NamedTuple):
    """rate_n = min(1, t * factor_pn) of field n, with t = Q(u_0) and p drawn by u_1.

    quantiles: [K + 1], Q on an even grid, interpolated linearly between. Exact for a uniform law of t (K = 1); for any
    other no probability is off by more than 1 / K. With K a power of two the place in the grid is not rounded.
    reach: [P], pattern p is drawn when u_1 is below reach_p and not below the one before; the last is 1.
    factors: [P, N], at least 0.
    """

    quantiles: Tensor
    reach: Tensor
    factors: Tensor


class ColumnChunks(NamedTuple):
    """The columns of a `FieldLayout` in the two forms that the kernels read."""

    chunk_field: Tensor
    """[K] int64, the field of each of K chunks of gcd(D_1 .. D_N) columns: with equal widths one chunk is one field"""
    group_start: Tensor
    """[G + 1] int32, the first column of every group of 8 fields, and sum D_n"""

    @classmethod
    def of(cls, layout: FieldLayout) -> ColumnChunks:
        """Return the chunks of a layout."""
        group_start = [*layout.offsets[:-1:GROUP], layout.total_width]
        return cls(
            layout.field_of_column[:: math.gcd(*layout.widths)].contiguous(),
            torch.tensor(group_start, dtype=torch.int32),
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
    """x_t and s of x_0 and m: step_n = missing_n or tau_n < rate_n, and the columns of such fields become +0.

    clean: [B, sum D_n]; missing: [B, N] bool; sample_index: [B] int64, the sample's place in the run; seed: 64 bits.
    Returns noisy [B, sum D_n] and step [B, N] bool; with both_as, instead of noisy, the rows of clean and then those of
    noisy, [2 B, sum D_n] of that dtype, which costs one pass over them, and so does their gradient.
    """
    views, step, _ = _drop_fields(
        clean, missing, sample_index, seed, *law, *chunks, both_as or clean.dtype, both_as is not None
    )
    return views, step


@torch.library.custom_op("asymdiffrec::drop_fields", mutates_args=())
def _drop_fields(
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
    """The views, the step and its bits [B, G] uint8: field n is bit n % 8 of byte n // 8."""
    return eager.forward(
        clean, missing, sample_index, seed, quantiles, reach, factors, chunk_field, dtype=dtype, both=both
    )


@torch.library.custom_op("asymdiffrec::drop_fields_backward", mutates_args=())
def _drop_fields_backward(
    gradient: Tensor, bits: Tensor, chunk_field: Tensor, group_start: Tensor, dtype: torch.dtype, both: bool
) -> Tensor:
    """The gradient [B, sum D_n] of clean, from that of the views."""
    return eager.backward(gradient, bits, chunk_field, dtype=dtype, both=both)


@_drop_fields.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from asymdiffrec.diffusion.kernels import drop_fields_triton  # comes with torch's CUDA builds alone

    return drop_fields_triton.forward(*arguments)


@_drop_fields_backward.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    from asymdiffrec.diffusion.kernels import drop_fields_triton

    return drop_fields_triton.backward(*arguments)


@_drop_fields.register_fake
def _(clean: Tensor, missing: Tensor, sample_index: Tensor, seed: int, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, group_start, dtype, both = rest
    batch, columns = clean.shape
    return (
        clean.new_empty(2 * batch if both else batch, columns, dtype=dtype),
        missing.new_empty(missing.shape),
        missing.new_empty(batch, len(group_start) - 1, dtype=torch.uint8),
    )


@_drop_fields_backward.register_fake
def _(gradient: Tensor, bits: Tensor, *rest: Any) -> Tensor:
    return gradient.new_empty(len(bits), gradient.shape[1], dtype=rest[2])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    clean, *_, chunk_field, group_start, _, both = inputs
    _, step, bits = output
    ctx.mark_non_differentiable(step, bits)
    ctx.save_for_backward(bits, chunk_field, group_start)
    ctx.dtype, ctx.both = clean.dtype, both


def _backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return _drop_fields_backward(gradient, *ctx.saved_tensors, ctx.dtype, ctx.both), *[None] * 10


_drop_fields.register_autograd(_backward, setup_context=_keep_for_backward)
