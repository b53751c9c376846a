"""One column of the samples of a request: its Arrow type, and the conversion of JSON values and Arrow arrays to it."""

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
"""Largest size of a dictionary-encoded column after decoding: a few bytes of a request can stand for gigabytes"""

_ARROW_TYPES = {int: pa.int64(), str: pa.string(), float: pa.float64()}
_JSON_TYPES = {int: "integer", str: "string", float: "number"}


@dataclass(frozen=True)
class RequestColumn:
    """The type of a column and the ids that it may have."""

    kind: type
    """int or str for ids, float for numbers"""
    is_list: bool
    num_embeddings: int | None
    """For ids that are rows of a table: the number of rows. None for all other columns."""

    @cached_property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type that `decode` takes."""
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
        """Return JSON values [B] as an array of `arrow_type`, or None if one of them is not allowed.

        None among the values means missing. As in training, an integer may be given as a string and a string id as an
        integer, if that is lossless.
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
        """Return an Arrow array as an array of `arrow_type`; raise ValueError or a pyarrow error if it cannot be."""
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
                raise ValueError("a dictionary holds strings or int64, and is not an element type of lists")
            sizes = pc.binary_length(array.dictionary) if value.value_type != pa.int64() else None
            if sizes is not None and len(array) * (pc.max(sizes).as_py() or 0) > MAX_DECODED_BYTES:
                raise ValueError("the column is too large after decoding")
        # Unsafe casts are allowed for integers only: large ones are rounded to floats, and ids of 2^63 and more keep
        # their bits, both as in training.
        cast = array.cast(self.arrow_type, safe=not pa.types.is_integer(value))
        cast.validate(full=True)
        return cast

    def out_of_range(self, array: pa.Array) -> np.ndarray | None:
        """Return which ids of an array, or of all its lists in order, are no row of the table; None if all are rows."""
        if self.num_embeddings is None:
            return None
        mask = ids_outside_table(array.flatten() if self.is_list else array, self.num_embeddings)
        return mask if mask.any() else None

    def _have_kinds(self, values: Sequence[Any], kinds: set[type]) -> bool:
        """Return whether all values, or the elements of all lists, are of these types and in the allowed range.

        The exact types are compared, all at once: a bool is refused as a number, although it is an int in Python.
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
        """Convert integers that pyarrow refuses, with the result that training has; None if that is impossible.

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
    """Return the index of the list that each value of `lists.flatten()` belongs to.

    `pc.list_parent_indices` also counts values that are stored behind a null list, and `flatten` leaves them out.
    """
    return np.repeat(np.arange(len(lists)), list_lengths(lists))


def drop_values(array: pa.Array, drop: np.ndarray, is_list: bool) -> pa.Array:
    """Return the array with the values where `drop` is True set to null, or removed from their lists."""
    if not is_list:
        return pc.if_else(pa.array(drop), pa.scalar(None, array.type), array)
    lengths = np.bincount(_list_indices(array)[~drop], minlength=len(array))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, array.flatten().filter(pa.array(~drop)), mask=array.is_null())
