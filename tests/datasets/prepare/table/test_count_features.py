"""Count features, compared with a plain loop; no feature may depend on the label of its row."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.count_features import PRIOR_ROWS
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from tests.datasets.prepare.table.click_log import csv, raw, recipe, written

COUNT_FEATURES = ["user_id", "user_id*city"]
KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "user_id": lambda row: row["user_id"],
    "user_id_city": lambda row: None if None in (row["user_id"], row["city"]) else (row["user_id"], row["city"]),
}


def prepare_rows(tmp_path: Path, name: str, table: pa.Table, **settings: Any) -> dict[int, dict[str, Any]]:
    """Prepare a table with count features and return {row number: row}; each row contains its split."""
    folder = tmp_path / name
    folder.mkdir()
    prepare_table(folder / "out", recipe(csv(folder, table), count_features=COUNT_FEATURES, **settings))
    return {
        row["row"]: {**row, "split": split}
        for split, part in written(folder / "out").items()
        for row in part.to_pylist()
    }


def test_only_earlier_training_rows_count_if_there_is_a_time(tmp_path: Path) -> None:
    rows = prepare_rows(tmp_path, "one", raw(), split={"by": "time"})
    train = [row for row in rows.values() if row["split"] == "train"]
    mean = sum(row["label"] for row in train) / len(train)
    compared = 0
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
            assert math.isclose(rate, (sum(before) + PRIOR_ROWS * mean) / (len(before) + PRIOR_ROWS), rel_tol=1e-9)
            compared += 1
    assert compared > 100


def test_only_other_folds_count_without_a_time(tmp_path: Path) -> None:
    table = raw().drop_columns(["time"])
    rows = prepare_rows(tmp_path, "one", table)
    train = [row for row in rows.values() if row["split"] == "train"]
    mean = sum(row["label"] for row in train) / len(train)
    for row in rows.values():
        user_labels = [other["label"] for other in train if other["user_id"] == row["user_id"]]
        if row["split"] != "train":
            assert row["user_id_count"] == len(user_labels)
            expected = (sum(user_labels) + PRIOR_ROWS * mean) / (len(user_labels) + PRIOR_ROWS)
            assert math.isclose(row["user_id_rate"], expected, rel_tol=1e-9)
        else:
            assert row["user_id_count"] < len(user_labels)

    changed = train[3]["row"]
    labels = table["click"].to_pylist()
    labels[changed] = 1 - labels[changed]
    index = table.column_names.index("click")
    others = prepare_rows(tmp_path, "two", table.set_column(index, "click", pa.array(labels)))
    assert others[changed]["label"] != rows[changed]["label"]
    shift = abs(others[changed]["user_id_rate"] - rows[changed]["user_id_rate"])
    assert shift <= PRIOR_ROWS / len(train)  # only through the mean label of all rows
    changed_rates = [
        row["row"]
        for row in train
        if row["user_id"] == rows[changed]["user_id"]
        and abs(others[row["row"]]["user_id_rate"] - row["user_id_rate"]) > 0.005
    ]
    assert changed_rates
    assert changed not in changed_rates


def test_count_features_have_the_group_of_their_id(tmp_path: Path) -> None:
    with_features = recipe(
        csv(tmp_path), count_features=["user_id"], infer=True, fields={"user_id": {"type": "id", "group": "user"}}
    )
    profile = prepare_table(tmp_path / "out", with_features)
    fields = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]
    assert fields["user_id_count"] == {"type": "number", "group": "user", "transform": "log1p"}
    assert fields["user_id_rate"] == {"type": "number", "group": "user"}
    reasons = {column["column"]: column["reason"] for column in profile["columns"]}
    assert reasons["user_id_count"] == "number of earlier training rows with the same user_id"


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (["price"], "count_features: price is not a field of type id; the id fields are row, user_id, city"),
        (["user_id*tags"], "count_features: tags is not a field of type id"),
        (["user_id", "user_id"], "count_features: user_id adds a field user_id_count, but a column has this name"),
    ],
)
def test_wrong_count_features_are_an_error(tmp_path: Path, features: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        prepare_table(tmp_path / "out", recipe(csv(tmp_path), count_features=features))
