"""What a column becomes that nobody declared, and how large its table should be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymdiffrec.datasets.decoding.hashing import hash_ids
from asymdiffrec.datasets.prepare.table.infer import choose, guessed, shared, suggested_rows
from asymdiffrec.datasets.prepare.table.survey import Column


def column(name: str = "x", kind: str = "VARCHAR", **figures: object) -> Column:
    """A column of 10,000 rows of text, all different from what `figures` say."""
    whole = {"rows": 10_000, "present": 10_000, "distinct": 500, "integers": 0, "numbers": 0, "length": 8.0}
    return Column(**{"name": name, "kind": kind, "least": None, "most": None, **whole, **figures})  # type: ignore[arg-type]


INTEGERS = {"integers": 10_000, "numbers": 10_000, "least": 0.0, "most": 900.0}
REALS = {"integers": 90, "numbers": 10_000, "least": -1.5, "most": 900.0}


@pytest.mark.parametrize(
    ("found", "kind", "reason"),
    [
        (column(), "id", "text; about 500 distinct"),
        (column(distinct=9_900), None, "has another value in nearly each row"),
        (column(length=120.0), None, "text of 120 characters on average"),
        (column(present=0), None, "never has a value"),
        (column(distinct=1), None, "has the same value in every row"),
        (column(distinct=1, present=9_000), "id", "text; about 1 distinct"),
        (column(separator="|", length=2.5), "id_list", "lists of 2.5 ids on average, with | between them"),
        (column(kind="BIGINT[]", length=2.5), "id_list", "lists of 2.5 ids on average; about 500"),
        (column(**INTEGERS), "number", "integers from 0 to 900; about 500 distinct"),
        (column(**INTEGERS, kind="INTEGER"), "number", "integers from 0 to 900"),
        (column("item_id", **INTEGERS), "id", "integers whose name says id"),
        (column("itemId", **INTEGERS), "id", "integers whose name says id"),
        (column("id7", **INTEGERS), "id", "integers whose name says id"),
        (column("paid", **INTEGERS), "number", "integers from"),
        (column("row_id", **{**INTEGERS, "distinct": 9_999}), None, "names its row"),
        (column(**{**INTEGERS, "distinct": 12}), "id", "only 12 different integers"),
        (column(**{**INTEGERS, "most": 2.0**40}), "id", "integers too large to be amounts"),
        (column(**REALS), "number", "numbers from -1.5 to 900"),
        (column(**{**REALS, "integers": 10_000}, kind="DOUBLE"), "number", "numbers from"),
        (column(**{**INTEGERS, "distinct": 12}, kind="DOUBLE"), "id", "only 12 different integers"),
        (column(kind="TIMESTAMP"), None, "is a time"),
        (column(kind="BLOB"), None, "a column of type BLOB cannot be a field"),
    ],
)
def test_what_a_column_becomes(found: Column, kind: str | None, reason: str) -> None:
    choice = choose(found)
    assert choice.kind == kind
    assert reason in choice.reason


def test_names_are_guessed_whatever_their_case() -> None:
    assert guessed(("label", "click"), {"Click": 1, "LABEL": 2}) == "LABEL"
    assert guessed(("label",), {"labels": 1}) is None


@given(st.integers(1, 10**10))
def test_suggested_rows_are_round_and_hold_the_ids(ids: int) -> None:
    rows = suggested_rows(ids)
    assert rows >= 1000
    assert 2 * ids <= rows <= max(1000, 110 * ids)
    assert str(rows).rstrip("0").__len__() <= 2
    assert suggested_rows(ids + 1) >= rows


@pytest.mark.parametrize(("ids", "rows"), [(1_000, 1_000), (20_000, 100_000), (50_000, 1_000_000)])
def test_the_share_of_colliding_ids_is_what_hashing_makes_it(ids: int, rows: int) -> None:
    import pyarrow as pa

    found = hash_ids(pa.array(np.arange(ids) * 977), seed=3, size=rows)
    colliding = (np.bincount(found)[found] > 1).mean()
    assert shared(ids, rows) == pytest.approx(colliding, abs=0.03)
