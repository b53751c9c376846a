"""Random numbers that depend only on (seed, sample, lane), not on the batch, the number of workers or the device.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011) maps a 128-bit counter to 128
random bits, under a 64-bit key.

The arithmetic is int64 without overflow. The two multipliers M are above 2**31, so the product c * M with a 32-bit word
c can overflow. The product c * (M - 2**32) cannot, and c * M = c * (M - 2**32) + c * 2**32 gives both halves of c * M.
Overflow would give the right words in eager mode. But signed overflow is undefined in C++, and the C++ code that
`torch.compile` generates gave wrong words.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53 - 2**32, 0xCD9E8D57 - 2**32)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: int) -> Words:
    """Return the four 32-bit words of Philox4x32-10 for a counter, as int64 in [0, 2**32).

    counter: four int64 tensors in [0, 2**32), low word first, whose shapes can be broadcast.
    key: 64 bits, low word first.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) + c2) ^ c1 ^ k0,
            second & _WORD,
            ((first >> 32) + c0) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def uniforms(seed: int, sample_index: Tensor, lanes: int) -> Tensor:
    """Return fp32 uniforms on [0, 1), [B, lanes, 4]: word w of lane l has the counter (sample low, sample high, 0, l).

    seed: the 64-bit key; sample_index: [B] int64. A uniform is (word >> 8) * 2**-24, which is exact in fp32, so that a
    comparison of two uniforms has the same result on every device.
    """
    low, high = (sample_index & _WORD)[:, None], ((sample_index >> 32) & _WORD)[:, None]
    lane = torch.arange(lanes, device=sample_index.device)[None, :]
    words = philox4x32((low, high, torch.zeros_like(lane), lane), seed)
    return torch.stack([(word >> 8).to(torch.float32) for word in words], dim=-1) * 2.0**-24
