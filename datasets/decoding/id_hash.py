"""Hashing of 64-bit ids to a range of integers, the same in every reader and in serving."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets.decoding.native import compiled, view

SPLITMIX_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
SPLITMIX_FACTOR_1, SPLITMIX_FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LOW_32_BITS = np.uint64(0xFFFFFFFF)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64 (Steele, Lea and Flood 2014), a bijection of uint64, to each element."""
    mixed = values.astype(np.uint64)  # a copy, mixed in place
    mixed += SPLITMIX_INCREMENT
    mixed ^= mixed >> np.uint64(30)
    mixed *= SPLITMIX_FACTOR_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= SPLITMIX_FACTOR_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


@compiled
def _splitmix64_word(word: np.uint64) -> np.uint64:
    h = word + SPLITMIX_INCREMENT
    h = (h ^ (h >> np.uint64(30))) * SPLITMIX_FACTOR_1
    h = (h ^ (h >> np.uint64(27))) * SPLITMIX_FACTOR_2
    return h ^ (h >> np.uint64(31))


@compiled
def _hash_word(word: np.uint64, seed: np.uint64, size: np.uint64) -> np.uint64:
    """Return the hash of a 64-bit id in [0, size): floor(size * h / 2^64) with h = SplitMix64(id xor seed).

    All arguments and the result are unsigned 64-bit words. The multiplication replaces a modulo, which would take
    longer than the rest of the hash (Lemire 2019). The high word of the product is computed from 32-bit halves, because
    compilers can vectorise this.
    """
    h = _splitmix64_word(word ^ seed)
    high, low = h >> np.uint64(32), h & LOW_32_BITS
    size_high, size_low = size >> np.uint64(32), size & LOW_32_BITS
    middle = high * size_low + ((low * size_low) >> np.uint64(32))
    carry = (middle & LOW_32_BITS) + low * size_high
    return high * size_high + (middle >> np.uint64(32)) + (carry >> np.uint64(32))


@compiled
def _hash_word_below_2_32(word: np.uint64, seed: np.uint64, size: np.uint64) -> np.uint64:
    """Return `_hash_word` for size < 2^32; half of its products are then zero and are left out."""
    h = _splitmix64_word(word ^ seed)
    return ((h >> np.uint64(32)) * size + (((h & LOW_32_BITS) * size) >> np.uint64(32))) >> np.uint64(32)


def id_dtype(size: int) -> type[np.int32] | type[np.int64]:
    """Return the smaller of int32 and int64 that holds -1 and the ids in [0, size)."""
    return np.int32 if size <= 2**31 else np.int64


def hash_ids(ids: pa.Array, seed: int, size: int) -> np.ndarray:
    """Return the hashes of ids [V] int64 in [0, size), with -1 for null, [V] of type `id_dtype(size)`."""
    hashed = np.empty(len(ids), id_dtype(size))
    validity, values = ids.buffers()
    if len(ids):
        hash_each = _hash_each_below_2_32 if size < 2**32 else _hash_each
        hash_each(values.address + 8 * ids.offset, hashed, np.uint64(seed), np.uint64(size))
        if ids.null_count:
            _mark_nulls(validity.address, ids.offset, hashed)
    return hashed


def copy_ids(ids: pa.Array, size: int) -> tuple[np.ndarray, bool]:
    """Return a copy of ids [V] int64 with the type `id_dtype(size)` and -1 for null, and whether the range is suspect.

    The second result is False if all ids are in [0, size). True means that an id may be outside; but the value outside
    can also be the undefined value of a null.
    """
    copied = np.empty(len(ids), id_dtype(size))
    validity, values = ids.buffers()
    if not len(ids):
        return copied, False
    suspect = _copy_each(values.address + 8 * ids.offset, copied, np.uint64(size))
    if ids.null_count:
        _mark_nulls(validity.address, ids.offset, copied)
    return copied, suspect


def take_entries(entries: np.ndarray, indices: pa.Array) -> np.ndarray:
    """Return `entries[indices]` for the int32 indices [V] of a dictionary-encoded column, with -1 for a null index."""
    taken = np.empty(len(indices), entries.dtype)
    validity, values = indices.buffers()
    if len(entries) == 0:
        taken.fill(-1)
    elif len(indices):
        _take_each(values.address + 4 * indices.offset, entries, taken)
        if indices.null_count:
            _mark_nulls(validity.address, indices.offset, taken)
    return taken


# Nulls are marked in a second loop. Without a branch both loops are vectorised, and the second one finds the output of
# the first in the cache.
@compiled
def _hash_each_below_2_32(address: int, out: np.ndarray, seed: np.uint64, size: np.uint64) -> None:
    ids = view(address, np.uint64)
    for index in range(np.uint64(len(out))):
        out[index] = _hash_word_below_2_32(ids[index], seed, size)


@compiled
def _hash_each(address: int, out: np.ndarray, seed: np.uint64, size: np.uint64) -> None:
    ids = view(address, np.uint64)
    for index in range(np.uint64(len(out))):
        out[index] = _hash_word(ids[index], seed, size)


@compiled
def _copy_each(address: int, out: np.ndarray, size: np.uint64) -> bool:
    ids, suspect = view(address, np.uint64), False
    for index in range(np.uint64(len(out))):
        suspect |= ids[index] >= size  # a negative id, read as unsigned, is larger than any size
        out[index] = ids[index]
    return suspect


@compiled
def _take_each(address: int, entries: np.ndarray, out: np.ndarray) -> None:
    indices, last = view(address, np.uint32), np.uint32(len(entries) - 1)
    for index in range(np.uint64(len(out))):
        out[index] = entries[min(indices[index], last)]  # the index of a null is undefined


@compiled
def _mark_nulls(validity: int, offset: int, out: np.ndarray) -> None:
    """Write -1 to `out[i]` for each null, where bit `offset + i` of the validity bitmap is 0."""
    bits, first = view(validity, np.uint8), np.uint64(offset)
    for index in range(np.uint64(len(out))):
        bit = first + index
        is_valid = (bits[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7))) & np.uint8(1)
        out[index] |= np.int64(is_valid) - 1
