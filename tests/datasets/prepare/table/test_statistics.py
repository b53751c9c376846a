"""Statistics of ids against a count by hand, and that no row knows its own label."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from asymdiffrec.datasets.prepare.table.statistics import PRIOR
from tests.datasets.prepare.table.click_log import csv, raw, recipe, written

ASKED = ["user_id", "user_id*city"]
KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "user_id": lambda row: row["user_id"],
    "user_id_city": lambda row: None if None in (row["user_id"], row["city"]) else (row["user_id"], row["city"]),
}


def prepared(tmp_path: Path, name: str, table: pa.Table, **settings: Any) -> dict[int, dict[str, Any]]:
    """The rows that were written, by their number, with their split."""
    folder = tmp_path / name
    folder.mkdir()
    prepare_table(folder / "out", recipe(csv(folder, table), statistics=ASKED, **settings))
    return {
        row["row"]: {**row, "split": split}
        for split, part in written(folder / "out").items()
        for row in part.to_pylist()
    }


def test_of_earlier_training_rows_where_there_is_a_time(tmp_path: Path) -> None:
    rows = prepared(tmp_path, "one", raw(), split={"by": "time"})
    train = [row for row in rows.values() if row["split"] == "train"]
    mean = sum(row["label"] for row in train) / len(train)
    seen = 0
    for row in rows.values():
        for name, key in KEYS.items():
            count, rate = row[f"{name}_count"], row[f"{name}_rate"]
            if key(row) is None:
                assert count is None
                assert rate is None
                continue
            before = [other["label"] for other in train if other["time"] < row["time"] and key(other) == key(row)]
            assert count == len(before)
            if not before:
                assert rate is None
                continue
            assert math.isclose(rate, (sum(before) + PRIOR * mean) / (len(before) + PRIOR), rel_tol=1e-9)
            seen += 1
    assert seen > 100


def test_out_of_fold_elsewhere(tmp_path: Path) -> None:
    table = raw().drop_columns(["time"])
    rows = prepared(tmp_path, "one", table)
    train = [row for row in rows.values() if row["split"] == "train"]
    mean = sum(row["label"] for row in train) / len(train)
    for row in rows.values():
        of_user = [other["label"] for other in train if other["user_id"] == row["user_id"]]
        if row["split"] != "train":
            assert row["user_id_count"] == len(of_user)
            expected = (sum(of_user) + PRIOR * mean) / (len(of_user) + PRIOR)
            assert math.isclose(row["user_id_rate"], expected, rel_tol=1e-9)
        else:
            assert row["user_id_count"] < len(of_user)

    changed = train[3]["row"]
    labels = table["click"].to_pylist()
    labels[changed] = 1 - labels[changed]
    place = table.column_names.index("click")
    others = prepared(tmp_path, "two", table.set_column(place, "click", pa.array(labels)))
    assert others[changed]["label"] != rows[changed]["label"]
    shift = abs(others[changed]["user_id_rate"] - rows[changed]["user_id_rate"])
    assert shift <= PRIOR / len(train)  # through the mean of all rows alone
    moved = [
        row["row"]
        for row in train
        if row["user_id"] == rows[changed]["user_id"]
        and abs(others[row["row"]]["user_id_rate"] - row["user_id_rate"]) > 0.005
    ]
    assert moved
    assert changed not in moved


def test_they_are_numbers_of_the_group_of_their_id(tmp_path: Path) -> None:
    asked = recipe(
        csv(tmp_path), statistics=["user_id"], infer=True, fields={"user_id": {"type": "id", "group": "user"}}
    )
    profile = prepare_table(tmp_path / "out", asked)
    fields = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]
    assert fields["user_id_count"] == {"type": "number", "group": "user", "transform": "log1p"}
    assert fields["user_id_rate"] == {"type": "number", "group": "user"}
    reasons = {column["column"]: column["reason"] for column in profile["columns"]}
    assert reasons["user_id_count"] == "how many earlier training rows have its user_id"


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (["price"], "statistics: price is no field of type id; there are row, user_id, city"),
        (["user_id*tags"], "statistics: tags is no field of type id"),
        (["user_id", "user_id"], "statistics: user_id makes a field user_id_count, but there is a column of that name"),
    ],
)
def test_what_has_none(tmp_path: Path, statistics: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        prepare_table(tmp_path / "out", recipe(csv(tmp_path), statistics=statistics))
