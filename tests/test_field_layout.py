"""Tests of `FieldLayout`, the layout of the flat tensor of field vectors."""

from __future__ import annotations

import pytest
import torch

from asymdiffrec.field_layout import FieldLayout


def test_columns_belong_to_the_field_at_their_offset() -> None:
    layout = FieldLayout(("user", "age", "item"), (3, 1, 2), ("profile", "profile", "item"))
    assert layout.num_fields == 3
    assert layout.total_width == 6
    assert layout.offsets == (0, 3, 4, 6)
    assert layout.field_of_column.tolist() == [0, 0, 0, 1, 2, 2]
    assert layout.field_of_column is layout.field_of_column


def test_select_keeps_widths_and_groups_in_the_given_order() -> None:
    layout = FieldLayout(("user", "age", "item"), (3, 1, 2), ("profile", "profile", "item"))
    assert layout.select(["item", "user"]) == FieldLayout(("item", "user"), (2, 3), ("item", "profile"))


def test_from_widths_names_fields_by_number() -> None:
    assert FieldLayout.from_widths([4, 2]) == FieldLayout(("0", "1"), (4, 2), ("0", "1"))
    assert FieldLayout.from_widths([4, 2], ["a", "a"]).groups == ("a", "a")


def test_index_is_not_on_meta_inside_a_meta_context() -> None:
    with torch.device("meta"):
        assert FieldLayout.from_widths([1, 2]).field_of_column.tolist() == [0, 1, 1]


@pytest.mark.parametrize("widths", [[], [4, 0]])
def test_widths_must_be_positive(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="one or more positive numbers"):
        FieldLayout.from_widths(widths)


def test_every_field_has_a_group() -> None:
    with pytest.raises(ValueError, match="found 3 names, 3 widths and 2 groups"):
        FieldLayout.from_widths([1, 1, 1], ["a", "b"])
