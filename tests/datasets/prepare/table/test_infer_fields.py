"""The inferred type of a column, and the suggested size of its table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymdiffrec.datasets.decoding.id_hash import hash_ids
from asymdiffrec.datasets.prepare.table.column_profiles import ColumnProfile
from asymdiffrec.datasets.prepare.table.infer_fields import (
    collision_share,
    first_named,
    infer_field,
    suggested_num_embeddings,
)


def column(name: str = "x", duckdb_type: str = "VARCHAR", **figures: object) -> ColumnProfile:
    """Return the profile of a text column with 10,000 rows, with some values replaced."""
    default = {"rows": 10_000, "present": 10_000, "distinct": 500, "integers": 0, "numbers": 0, "length": 8.0}
    return ColumnProfile(
        **{"name": name, "duckdb_type": duckdb_type, "smallest": None, "largest": None, **default, **figures}
    )  # type: ignore[arg-type]


INTEGERS = {"integers": 10_000, "numbers": 10_000, "smallest": 0.0, "largest": 900.0}
REALS = {"integers": 90, "numbers": 10_000, "smallest": -1.5, "largest": 900.0}


@pytest.mark.parametrize(
    ("profile", "field_type", "reason"),
    [
        (column(), "id", "text; about 500 distinct ids"),
        (column(distinct=9_900), None, "is different in nearly every row (about 9,900 distinct values)"),
        (column(length=120.0), None, "is long text, 120 characters on average"),
        (column(present=0), None, "has no value in any row"),
        (column(distinct=1), None, "has the same value in every row"),
        (column(distinct=1, present=9_000), "id", "text; about 1 distinct"),
        (column(separator="|", length=2.5), "id_list", "lists of 2.5 ids on average, separated by |"),
        (column(duckdb_type="BIGINT[]", length=2.5), "id_list", "lists of 2.5 ids on average; about 500"),
        (column(**INTEGERS), "number", "integers from 0 to 900; about 500 distinct"),
        (column(**INTEGERS, duckdb_type="INTEGER"), "number", "integers from 0 to 900"),
        (column("item_id", **INTEGERS), "id", "integers in a column named as an id"),
        (column("itemId", **INTEGERS), "id", "integers in a column named as an id"),
        (column("id7", **INTEGERS), "id", "integers in a column named as an id"),
        (column("paid", **INTEGERS), "number", "integers from"),
        (column("row_id", **{**INTEGERS, "distinct": 9_999}), None, "is an id that is different in nearly every row"),
        (column(**{**INTEGERS, "distinct": 12}), "id", "only 12 different integers"),
        (column(**{**INTEGERS, "largest": 2.0**40}), "id", "integers too large for an amount"),
        (column(**REALS), "number", "numbers from -1.5 to 900"),
        (column(**{**REALS, "integers": 10_000}, duckdb_type="DOUBLE"), "number", "numbers from"),
        (column(**{**INTEGERS, "distinct": 12}, duckdb_type="DOUBLE"), "id", "only 12 different integers"),
        (column(duckdb_type="TIMESTAMP"), None, "is a time"),
        (column(duckdb_type="BLOB"), None, "has the type BLOB, which cannot be a field"),
    ],
)
def test_inferred_type_and_reason(profile: ColumnProfile, field_type: str | None, reason: str) -> None:
    choice = infer_field(profile)
    assert choice.type == field_type
    assert reason in choice.reason


def test_column_names_are_recognised_in_any_case() -> None:
    assert first_named(("label", "click"), {"Click": 1, "LABEL": 2}) == "LABEL"
    assert first_named(("label",), {"labels": 1}) is None


@given(st.integers(1, 10**10))
def test_suggested_sizes_are_round_and_have_room_for_the_ids(ids: int) -> None:
    rows = suggested_num_embeddings(ids)
    assert rows >= 1000
    assert 2 * ids <= rows <= max(1000, 110 * ids)
    assert str(rows).rstrip("0").__len__() <= 2
    assert suggested_num_embeddings(ids + 1) >= rows


@pytest.mark.parametrize(("ids", "rows"), [(1_000, 1_000), (20_000, 100_000), (50_000, 1_000_000)])
def test_the_collision_share_matches_the_hash(ids: int, rows: int) -> None:
    import pyarrow as pa

    hashed = hash_ids(pa.array(np.arange(ids) * 977), seed=3, size=rows)
    colliding = (np.bincount(hashed)[hashed] > 1).mean()
    assert collision_share(ids, rows) == pytest.approx(colliding, abs=0.03)
