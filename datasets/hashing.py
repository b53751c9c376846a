"""Ids to rows of a table: one 64-bit hash, the same for every reader and for serving."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection of uint64, element by element."""
    mixed = values.astype(np.uint64)  # a copy, mixed in place
    mixed += np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_rows(ids: np.ndarray, seed: int, rows: int) -> np.ndarray:
    """Rows in [0, rows) of 64-bit ids, int64: SplitMix64 of the id exclusive-or the table's seed, modulo the rows."""
    mixed = splitmix64(ids.view(np.uint64) ^ np.uint64(seed))
    return (mixed % np.uint64(rows)).view(np.int64)


def string_ids(strings: pa.Array) -> np.ndarray:
    """64-bit ids of strings without nulls, int64: XXH3 of the UTF-8 bytes, once for each distinct string."""
    encoded = pc.dictionary_encode(strings.cast(pa.large_binary()))
    distinct = [xxhash.xxh3_64_intdigest(value) for value in encoded.dictionary.to_pylist()]
    return np.array(distinct, dtype=np.uint64).view(np.int64)[encoded.indices.to_numpy()]
