"""`drop_fields` in plain torch, for devices other than CUDA. The Triton kernel must give the same bits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from asymdiffrec.diffusion.philox import uniforms


def forward(
    clean: Tensor,
    missing: Tensor,
    sample_index: Tensor,
    seed: int,
    quantiles: Tensor,
    pattern_cdf: Tensor,
    factors: Tensor,
    chunk_field: Tensor,
    *,
    dtype: torch.dtype,
    both: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return views, mask and packed mask, see `drop_fields`."""
    num_fields = missing.shape[1]
    draws = uniforms(seed, sample_index, lanes=1 + math.ceil(num_fields / 4))
    absorption_time = draws[:, 1:].flatten(1)[:, :num_fields]
    factor = factors[pattern_index(pattern_cdf, draws[:, 0, 1])] if len(factors) > 1 else factors
    # The rate is not clamped to 1: every absorption time is below 1.
    mask = missing | (absorption_time < noise_level(quantiles, draws[:, 0, 0])[:, None] * factor)
    mask = mask.contiguous()  # `missing` may be stored by field; results have the same strides on all devices
    noisy = zero_fields(clean, mask, chunk_field).to(dtype).contiguous()
    return torch.cat([clean.to(dtype), noisy]) if both else noisy, mask, pack(mask)


def backward(gradient: Tensor, packed: Tensor, chunk_field: Tensor, *, dtype: torch.dtype, both: bool) -> Tensor:
    """Return the gradient of `clean` [B, sum D_n], given the gradient of the views and the packed mask."""
    mask = unpack(packed, num_fields=int(chunk_field[-1]) + 1)
    noisy = zero_fields(gradient[-len(packed) :], mask, chunk_field).to(dtype).contiguous()
    return noisy.add_(gradient[: len(packed)]) if both else noisy


def noise_level(quantiles: Tensor, uniform: Tensor) -> Tensor:
    """Return t [B] for uniforms [B]: Q(uniform), see `DropLaw`."""
    position = uniform * (len(quantiles) - 1)
    cell = position.long()
    low, high = quantiles[cell], quantiles[cell + 1]
    return low + (position - cell) * (high - low)


def pattern_index(pattern_cdf: Tensor, uniform: Tensor) -> Tensor:
    """Return the index [B] of the pattern that each uniform [B] draws, see `DropLaw`."""
    return torch.searchsorted(pattern_cdf, uniform.contiguous(), right=True)


def zero_fields(x: Tensor, mask: Tensor, chunk_field: Tensor) -> Tensor:
    """Return x [B, sum D_n] with +0 in the vectors of the fields in mask [B, N], also where x is NaN or infinite.

    The function computes a bitwise AND of x with all ones or all zeros. On CPU this is 5 to 10 times as fast as a
    broadcast `torch.where`.
    """
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    keep = mask.to(word) - 1
    if len(chunk_field) > mask.shape[1]:
        keep = keep[:, chunk_field]
    chunks = x.view(word).unflatten(1, (len(chunk_field), -1))
    return (chunks & keep[:, :, None]).flatten(1).view(x.dtype)


def pack(mask: Tensor) -> Tensor:
    """Pack eight fields into a byte, [B, N] bool to [B, ceil(N / 8)] uint8: field n is bit n % 8 of byte n // 8."""
    bytes_of_eight = F.pad(mask.view(torch.uint8), (0, -mask.shape[1] % 8)).view(torch.int64)
    return (bytes_of_eight * 0x0102040810204080 >> 56 & 0xFF).to(torch.uint8)  # byte i, 0 or 1, goes to bit 56 + i


def unpack(packed: Tensor, num_fields: int) -> Tensor:
    """Return the mask [B, N] uint8, 0 or 1, of a packed mask: the inverse of `pack`."""
    bit = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed[:, :, None] >> bit & 1).flatten(1)[:, :num_fields]
