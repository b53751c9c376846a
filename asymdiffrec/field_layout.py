"""The position of each field's vector in the flat tensor of field vectors [B, sum D_n]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class FieldLayout:
    """Names, widths D_n and groups of N fields whose vectors are concatenated to [B, sum D_n].

    Raises ValueError if a width is not positive or the number of names, widths and groups differs.

    >>> layout = FieldLayout(("user", "age"), (3, 1), ("profile", "profile"))
    >>> layout.offsets
    (0, 3, 4)
    >>> layout.field_of_column.tolist()
    [0, 0, 0, 1]
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    """Width D_n of each field"""
    groups: tuple[str, ...]
    """Group of each field; fields of one group can go missing together"""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: found {list(self.widths)}, allowed are one or more positive numbers")
        if not len(self.names) == len(self.widths) == len(self.groups):
            raise ValueError(
                f"field layout: found {len(self.names)} names, {len(self.widths)} widths and {len(self.groups)} "
                "groups; every field needs a name, a width and a group"
            )

    @classmethod
    def from_widths(cls, widths: Sequence[int], groups: Sequence[str] | None = None) -> FieldLayout:
        """Return the layout of fields named 0, 1, 2, ...; without `groups` each field is a separate group."""
        names = tuple(str(field) for field in range(len(widths)))
        return cls(names, tuple(widths), names if groups is None else tuple(groups))

    def select(self, names: Sequence[str]) -> FieldLayout:
        """Return the layout of the fields `names`, in this order."""
        fields = [self.names.index(name) for name in names]
        return FieldLayout(
            tuple(names), tuple(self.widths[field] for field in fields), tuple(self.groups[field] for field in fields)
        )

    @property
    def num_fields(self) -> int:
        """The number of fields N"""
        return len(self.widths)

    @property
    def total_width(self) -> int:
        """The sum of the widths D_n"""
        return sum(self.widths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The start of each field's vector in a row of the flat tensor, then sum D_n: N + 1 numbers."""
        return tuple(accumulate(self.widths, initial=0))

    @cached_property
    def field_of_column(self) -> Tensor:
        """The index of the field of each column of the flat tensor: [sum D_n] int64, on the CPU."""
        widths = torch.tensor(self.widths, device="cpu")  # even if torch's default device is meta
        return torch.arange(self.num_fields, device="cpu").repeat_interleave(widths)
