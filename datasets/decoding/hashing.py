"""Ids to rows of a table: two well-known 64-bit hashes, the same for every reader and for serving."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from asymdiffrec.datasets.decoding.native import compiled, view

GOLDEN, MIX1, MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
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
LOW = np.uint64(0xFFFFFFFF)


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of uint64, element by element."""
    mixed = values.astype(np.uint64)  # a copy, mixed in place
    mixed += GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= MIX1
    mixed ^= mixed >> np.uint64(27)
    mixed *= MIX2
    mixed ^= mixed >> np.uint64(31)
    return mixed


@compiled
def _mixed(word: np.uint64) -> np.uint64:
    """`splitmix64` of one word."""
    h = word + GOLDEN
    h = (h ^ (h >> np.uint64(30))) * MIX1
    h = (h ^ (h >> np.uint64(27))) * MIX2
    return h ^ (h >> np.uint64(31))


@compiled
def row_of(identity: np.uint64, seed: np.uint64, rows: np.uint64) -> np.uint64:
    """Row in [0, rows) of a 64-bit id: floor(rows * h / 2^64), h being SplitMix64 of the id exclusive-or the seed.

    All three and the result are 64-bit words without a sign. A multiplication, for a division would cost more than all
    the rest (Lemire 2019); the high word is put together from halves, which compilers can vectorise.
    """
    h = _mixed(identity ^ seed)
    high, low = h >> np.uint64(32), h & LOW
    rows_high, rows_low = rows >> np.uint64(32), rows & LOW
    middle = high * rows_low + ((low * rows_low) >> np.uint64(32))
    carry = (middle & LOW) + low * rows_high
    return high * rows_high + (middle >> np.uint64(32)) + (carry >> np.uint64(32))


@compiled
def row_in_small(identity: np.uint64, seed: np.uint64, rows: np.uint64) -> np.uint64:
    """`row_of` for tables of less than 2^32 rows, where half of the multiplications give zero."""
    h = _mixed(identity ^ seed)
    return ((h >> np.uint64(32)) * rows + (((h & LOW) * rows) >> np.uint64(32))) >> np.uint64(32)


def hash_rows(ids: pa.Array, seed: int, rows: int) -> np.ndarray:
    """Rows in [0, rows) of 64-bit ids [V] int64: `row_of` of each, -1 where it is null; int32 where that holds them."""
    found = np.empty(len(ids), row_type(rows))
    validity, values = ids.buffers()
    if len(ids):
        hash_each = _hash_each_small if rows < 2**32 else _hash_each
        hash_each(values.address + 8 * ids.offset, found, np.uint64(seed), np.uint64(rows))
        if ids.null_count:
            _mark_nulls(validity.address, ids.offset, found)
    return found


def own_rows(ids: pa.Array, rows: int) -> tuple[np.ndarray, bool]:
    """Ids [V] int64 that are rows themselves, in the smallest type that holds those of a table, -1 where null; and
    whether one is none of its `rows`. Then, as values behind a null count too, there may be none after all."""
    found = np.empty(len(ids), row_type(rows))
    validity, values = ids.buffers()
    if not len(ids):
        return found, False
    wrong = _copy_rows(values.address + 8 * ids.offset, found, np.uint64(rows))
    if ids.null_count:
        _mark_nulls(validity.address, ids.offset, found)
    return found, wrong


def taken(entries: np.ndarray, indices: pa.Array) -> np.ndarray:
    """The entries of a dictionary that a column's indices, int32, say, in a new array of their type; -1 where null."""
    found = np.empty(len(indices), entries.dtype)
    validity, places = indices.buffers()
    if len(entries) == 0:
        found.fill(-1)
    elif len(indices):
        _take(places.address + 4 * indices.offset, entries, found)
        if indices.null_count:
            _mark_nulls(validity.address, indices.offset, found)
    return found


def row_type(rows: int) -> type[np.int32] | type[np.int64]:
    """The smallest type that holds the rows of a table."""
    return np.int32 if rows <= 2**31 else np.int64


# Two loops, and no branch in either: so both are vectorised, and what the first wrote is in the cache for the second.
@compiled
def _hash_each_small(values: int, found: np.ndarray, seed: np.uint64, rows: np.uint64) -> None:
    ids = view(values, np.uint64)
    for place in range(np.uint64(len(found))):
        found[place] = row_in_small(ids[place], seed, rows)


@compiled
def _hash_each(values: int, found: np.ndarray, seed: np.uint64, rows: np.uint64) -> None:
    ids = view(values, np.uint64)
    for place in range(np.uint64(len(found))):
        found[place] = row_of(ids[place], seed, rows)


@compiled
def _copy_rows(values: int, found: np.ndarray, rows: np.uint64) -> bool:
    ids, wrong = view(values, np.uint64), False
    for place in range(np.uint64(len(found))):
        wrong |= ids[place] >= rows  # one below 0 is beyond all of them there
        found[place] = ids[place]
    return wrong


@compiled
def _take(indices: int, entries: np.ndarray, found: np.ndarray) -> None:
    places, last = view(indices, np.uint32), np.uint32(len(entries) - 1)
    for place in range(np.uint64(len(found))):
        found[place] = entries[min(places[place], last)]  # an index where there is no value may be anything


@compiled
def _mark_nulls(validity: int, offset: int, found: np.ndarray) -> None:
    """-1 where the bit of a validity bitmap, from `offset` on, is not set."""
    bits, first = view(validity, np.uint8), np.uint64(offset)
    for place in range(np.uint64(len(found))):
        bit = first + place
        there = (bits[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7))) & np.uint8(1)
        found[place] |= np.int64(there) - 1


def string_ids(strings: pa.Array) -> np.ndarray:
    """64-bit ids of strings, [V] int64: XXH64 of their UTF-8 bytes, with seed 0; of no meaning where null.

    A dictionary-encoded array is hashed once for each entry of its dictionary.
    """
    if pa.types.is_dictionary(strings.type):
        indices = strings.indices.fill_null(0).to_numpy()
        distinct = string_ids(strings.dictionary)
        return distinct[indices] if len(distinct) else np.zeros(len(strings), np.int64)
    wide = pa.types.is_large_string(strings.type) or pa.types.is_large_binary(strings.type)
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[strings.offset : strings.offset + len(strings) + 1]
    return _xxh64_each(ends, data.address if data is not None else 0)


@compiled
def _xxh64_each(ends: np.ndarray, data: int) -> np.ndarray:
    found = np.empty(len(ends) - 1, np.int64)
    for place in range(len(found)):
        found[place] = np.int64(_xxh64(data + ends[place], ends[place + 1] - ends[place]))
    return found


@compiled
def _rotated(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@compiled
def _round(state: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(state + word * P2, 31) * P1


@compiled
def _xxh64(address: int, length: int) -> np.uint64:
    """XXH64 (Collet, the xxHash specification, 0.1.1) of the bytes at an address, with seed 0."""
    place, zero = 0, np.uint64(0)
    if length >= 32:
        one, two, three, four = P1 + P2, P2, zero, zero - P1
        words = view(address, np.uint64)
        while place + 32 <= length:
            word = place >> 3
            one, two = _round(one, words[word]), _round(two, words[word + 1])
            three, four = _round(three, words[word + 2]), _round(four, words[word + 3])
            place += 32
        sparse = _rotated(one, 1) + _rotated(two, 7) + _rotated(three, 12) + _rotated(four, 18)
        for state in (one, two, three, four):
            sparse = (sparse ^ _round(zero, state)) * P1 + P4
    else:
        sparse = P5
    sparse += np.uint64(length)
    while place + 8 <= length:
        sparse = _rotated(sparse ^ _round(zero, view(address + place, np.uint64)[0]), 27) * P1 + P4
        place += 8
    if place + 4 <= length:
        sparse = _rotated(sparse ^ (np.uint64(view(address + place, np.uint32)[0]) * P1), 23) * P2 + P3
        place += 4
    while place < length:
        sparse = _rotated(sparse ^ (np.uint64(view(address + place, np.uint8)[0]) * P5), 11) * P1
        place += 1
    sparse = (sparse ^ (sparse >> np.uint64(33))) * P2
    sparse = (sparse ^ (sparse >> np.uint64(29))) * P3
    return sparse ^ (sparse >> np.uint64(32))
