"""The position of each field's columns in the flat tensor of field vectors [B, sum D_n]."""

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
    """Columns D_n of each field"""
    groups: tuple[str, ...]
    """Group of each field; fields of one group can go missing together"""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: found {list(self.widths)}, allowed are one or more positive numbers of columns")
        if not len(self.names) == len(self.widths) == len(self.groups):
            raise ValueError(
                f"field layout: found {len(self.names)} names, {len(self.widths)} widths and {len(self.groups)} "
                "groups, allowed is one of each per field"
            )

    @classmethod
    def from_widths(cls, widths: Sequence[int], groups: Sequence[str] | None = None) -> FieldLayout:
        """Return the layout of fields named 0, 1, 2, ...; without `groups` each field is a group of its own."""
        names = tuple(str(field) for field in range(len(widths)))
        return cls(names, tuple(widths), names if groups is None else tuple(groups))

    def select(self, names: Sequence[str]) -> FieldLayout:
        """Return the layout of some of the fields, in the order of `names`."""
        fields = [self.names.index(name) for name in names]
        return FieldLayout(
            tuple(names), tuple(self.widths[field] for field in fields), tuple(self.groups[field] for field in fields)
        )

    @property
    def num_fields(self) -> int:
        """N"""
        return len(self.widths)

    @property
    def total_width(self) -> int:
        """sum D_n"""
        return sum(self.widths)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First column of each field, then sum D_n; N + 1 numbers."""
        return tuple(accumulate(self.widths, initial=0))

    @cached_property
    def field_of_column(self) -> Tensor:
        """Index of the field that each column belongs to: [sum D_n] int64, on the CPU."""
        widths = torch.tensor(self.widths, device="cpu")  # also where torch's default device is meta
        return torch.arange(self.num_fields, device="cpu").repeat_interleave(widths)
