"""Hash string ids to 64-bit ids with XXH64.

The package xxhash hashes one Python object per call. The compiled loop in this module hashes a complete Arrow column
without creating Python objects, and releases the GIL. The tests compare the results with xxhash.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets.decoding.native import compiled, view

P1, P2, P3, P4, P5 = (
    np.uint64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
"""PRIME64_1 to PRIME64_5 of the specification of XXH64"""


def string_ids(strings: pa.Array) -> np.ndarray:
    """Return 64-bit ids of strings, [V] int64: XXH64 of the UTF-8 bytes with seed 0; undefined for null.

    In a dictionary-encoded column, each dictionary entry is hashed once.
    """
    if pa.types.is_dictionary(strings.type):
        indices = strings.indices.fill_null(0).to_numpy()
        entry_ids = string_ids(strings.dictionary)
        return entry_ids[indices] if len(entry_ids) else np.zeros(len(strings), np.int64)
    is_large = pa.types.is_large_string(strings.type) or pa.types.is_large_binary(strings.type)
    _, offsets, data = strings.buffers()
    offset_type = np.int64 if is_large else np.int32
    borders = np.frombuffer(offsets, offset_type)[strings.offset : strings.offset + len(strings) + 1]
    return _xxh64_each(borders, data.address if data is not None else 0)


@compiled
def _xxh64_each(borders: np.ndarray, data: int) -> np.ndarray:
    ids = np.empty(len(borders) - 1, np.int64)
    for index in range(len(ids)):
        ids[index] = np.int64(_xxh64(data + borders[index], borders[index + 1] - borders[index]))
    return ids


@compiled
def _rotate_left(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@compiled
def _round(state: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate_left(state + word * P2, 31) * P1


@compiled
def _xxh64(address: int, length: int) -> np.uint64:
    """Return XXH64 with seed 0 of `length` bytes (Collet, the xxHash specification, 0.1.1)."""
    at, zero = 0, np.uint64(0)
    if length >= 32:
        state_1, state_2, state_3, state_4 = P1 + P2, P2, zero, zero - P1
        words = view(address, np.uint64)
        while at + 32 <= length:
            word = at >> 3
            state_1, state_2 = _round(state_1, words[word]), _round(state_2, words[word + 1])
            state_3, state_4 = _round(state_3, words[word + 2]), _round(state_4, words[word + 3])
            at += 32
        h = _rotate_left(state_1, 1) + _rotate_left(state_2, 7) + _rotate_left(state_3, 12) + _rotate_left(state_4, 18)
        for state in (state_1, state_2, state_3, state_4):
            h = (h ^ _round(zero, state)) * P1 + P4
    else:
        h = P5
    h += np.uint64(length)
    while at + 8 <= length:
        h = _rotate_left(h ^ _round(zero, view(address + at, np.uint64)[0]), 27) * P1 + P4
        at += 8
    if at + 4 <= length:
        h = _rotate_left(h ^ (np.uint64(view(address + at, np.uint32)[0]) * P1), 23) * P2 + P3
        at += 4
    while at < length:
        h = _rotate_left(h ^ (np.uint64(view(address + at, np.uint8)[0]) * P5), 11) * P1
        at += 1
    h = (h ^ (h >> np.uint64(33))) * P2
    h = (h ^ (h >> np.uint64(29))) * P3
    return h ^ (h >> np.uint64(32))
