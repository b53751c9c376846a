"""Convert the JSON values or the Arrow array of one request column to the Arrow type of the column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from asymdiffrec.datasets.decoding.arrays import list_lengths
from asymdiffrec.datasets.decoding.column_types import is_list
from asymdiffrec.datasets.decoding.value_rules import MAX_FLOAT, ids_outside_table, parse_int64

MAX_LIST_LENGTH = 10_000
"""Largest number of ids in one list"""
MAX_DECODED_BYTES = 64 << 20
"""Largest size of a dictionary-encoded column after decoding: a few encoded bytes can represent gigabytes"""

_ARROW_TYPES = {int: pa.int64(), str: pa.string(), float: pa.float64()}
_JSON_TYPES = {int: "integer", str: "string", float: "number"}


@dataclass(frozen=True)
class RequestColumn:
    """The type of the values in a request column, and the range of its ids."""

    kind: type
    """int or str for ids, float for numbers"""
    is_list: bool
    num_embeddings: int | None
    """Number of rows of the embedding table if each id is a row index (the field has `hash: false`); None otherwise"""

    @cached_property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type that `decode` reads."""
        value = _ARROW_TYPES[self.kind]
        return pa.list_(value) if self.is_list else value

    @property
    def description(self) -> str:
        """The type in words, for error messages."""
        name = _JSON_TYPES[self.kind]
        return f"a list of {name}s" if self.is_list else f"{'an' if self.kind is int else 'a'} {name}"

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of a value, for OpenAPI."""
        schema: dict[str, Any] = {"type": _JSON_TYPES[self.kind]}
        if self.is_list:
            schema = {"type": "array", "items": schema, "maxItems": MAX_LIST_LENGTH}
        return {**schema, "type": [schema["type"], "null"]}

    def from_json(self, values: Sequence[Any]) -> pa.Array | None:
        """Return JSON values [B] as an array of `arrow_type`, or None if a value is not allowed.

        A value of None is missing. As in training, an integer id may be a string and a string id may be an integer, if
        the conversion is lossless.
        """
        if not self._have_kinds(values, {int, float} if self.kind is float else {self.kind}):
            if self.kind is float or not self._have_kinds(values, {int, str}):
                return None
            values = self._convert_ids(values)
        try:
            return pa.array(values, self.arrow_type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
            return self._from_large_integers(values)

    def from_arrow(self, array: pa.Array) -> pa.Array:
        """Return an array converted to `arrow_type`; raise ValueError or a pyarrow error if that is impossible."""
        value = array.type
        if self.is_list and not pa.types.is_null(value):
            if not is_list(value):
                raise ValueError("not a list")
            longest = pc.max(pc.list_value_length(array)).as_py()
            if longest is not None and longest > MAX_LIST_LENGTH:
                raise ValueError("a list is too long")
            value = value.value_type
        if pa.types.is_dictionary(value):
            if self.is_list or value.value_type not in (pa.string(), pa.large_string(), pa.int64()):
                raise ValueError(
                    "an Arrow dictionary column must have string or int64 values, and must not be in a list"
                )
            sizes = pc.binary_length(array.dictionary) if value.value_type != pa.int64() else None
            if sizes is not None and len(array) * (pc.max(sizes).as_py() or 0) > MAX_DECODED_BYTES:
                raise ValueError(f"the column has more than {MAX_DECODED_BYTES >> 20} MiB after decoding")
        # Only integers may be cast unsafely, as in training: a numeric column rounds large integers to floats, and an
        # id of 2^63 or more keeps its bits.
        cast = array.cast(self.arrow_type, safe=not pa.types.is_integer(value))
        cast.validate(full=True)
        return cast

    def out_of_range(self, array: pa.Array) -> np.ndarray | None:
        """Return [number of ids] bool: true for each id outside the embedding table; None if no id is outside.

        In a column of lists, the ids are the elements of all lists, in order.
        """
        if self.num_embeddings is None:
            return None
        mask = ids_outside_table(array.flatten() if self.is_list else array, self.num_embeddings)
        return mask if mask.any() else None

    def _have_kinds(self, values: Sequence[Any], kinds: set[type]) -> bool:
        """Return whether all values have a type in `kinds`, no list is too long, and no float is too large.

        In a column of lists, the types of the list elements are checked. None is allowed, except as an element of a
        list. Types must match exactly: a bool is not accepted as a number, although bool is a subclass of int.
        """
        if self.is_list:
            lists = [value for value in values if value is not None]
            if not {list} >= set(map(type, lists)) or max(map(len, lists), default=0) > MAX_LIST_LENGTH:
                return False
            values = list(chain.from_iterable(lists))
        types, null = set(map(type, values)), type(None)
        if not (kinds if self.is_list else kinds | {null}) >= types:
            return False
        numbers = [value for value in values if value is not None] if null in types else values
        return self.kind is not float or max(map(abs, numbers), default=0) <= MAX_FLOAT

    def _convert_ids(self, values: Sequence[Any]) -> list[Any]:
        """Convert integers and strings to the kind of the column; a string that is not an integer stays a string."""

        def convert(value: Any) -> Any:
            if type(value) is self.kind:
                return value
            if self.kind is str:
                return str(value)
            parsed = parse_int64(value)
            return value if parsed is None else parsed

        return self._map_values(values, convert)

    def _from_large_integers(self, values: Sequence[Any]) -> pa.Array | None:
        """Convert large integers that pyarrow refuses, as in training; return None if the conversion is impossible.

        A numeric column rounds integers that floats cannot represent; an id of 2^63 or more keeps its bits.
        """
        try:
            if self.kind is float:
                return pa.array(self._map_values(values, float), self.arrow_type)
            if self.kind is int:
                unsigned = pa.list_(pa.uint64()) if self.is_list else pa.uint64()
                return pa.array(values, unsigned).cast(self.arrow_type, safe=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            pass
        return None

    def _map_values(self, values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
        """Convert the values, or the elements of the lists; None stays None."""
        if not self.is_list:
            return [None if value is None else convert(value) for value in values]
        return [None if value is None else list(map(convert, value)) for value in values]


def _list_indices(lists: pa.Array) -> np.ndarray:
    """Return, for each value of `lists.flatten()`, the index of its list.

    `pc.list_parent_indices` cannot be used: it counts values stored under null lists, which `flatten` leaves out.
    """
    return np.repeat(np.arange(len(lists)), list_lengths(lists))


def drop_values(array: pa.Array, drop: np.ndarray, is_list: bool) -> pa.Array:
    """Drop the values where `drop` is true: set them to null, or remove them from their lists if `is_list` is true."""
    if not is_list:
        return pc.if_else(pa.array(drop), pa.scalar(None, array.type), array)
    lengths = np.bincount(_list_indices(array)[~drop], minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, array.flatten().filter(pa.array(~drop)), mask=array.is_null())
