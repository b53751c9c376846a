"""Rows are split at random, by time, by order, by files or by a column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from tests.datasets.prepare.table.click_log import ROWS, csv, raw, recipe, rows_of, written


def test_the_seed_determines_the_split_and_the_order(tmp_path: Path) -> None:
    file = csv(tmp_path)
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        prepare_table(tmp_path / name, recipe(file, seed=seed))
    one, again, two = (rows_of(tmp_path / name) for name in ("one", "again", "two"))
    assert one == again
    assert set(one["test"]) != set(two["test"])
    assert abs(np.corrcoef(one["train"], np.arange(len(one["train"])))[0, 1]) < 0.3


def test_a_random_split_has_the_shares(tmp_path: Path) -> None:
    file = csv(tmp_path, raw(20_000))
    profile = prepare_table(tmp_path / "out", recipe(file, split={"valid": 0.2, "test": 0.05}))
    shares = {split: rows / 20_000 for split, rows in profile["rows"].items()}
    assert shares == pytest.approx({"train": 0.75, "valid": 0.2, "test": 0.05}, abs=0.01)


@pytest.mark.parametrize("time", ["number", "text", "timestamp"])
def test_a_split_by_time_tests_on_the_latest_rows_and_keeps_equal_times_together(tmp_path: Path, time: str) -> None:
    table = raw()
    order = np.random.default_rng(0).permutation(ROWS)
    seconds = pa.array(table["time"].to_numpy() * 10_000).cast(pa.timestamp("s"))
    if time != "number":
        table = table.set_column(5, "time", seconds.cast(pa.string()) if time == "text" else seconds)
    file = tmp_path / "a.parquet"
    pq.write_table(table.take(order), file)
    prepare_table(tmp_path / "out", recipe(file, time="time", split={"by": "time", "valid": 0.1, "test": 0.205}))
    rows = rows_of(tmp_path / "out")
    assert sorted(rows["train"]) == list(range(138))
    assert sorted(rows["valid"]) == list(range(138, 158))
    assert sorted(rows["test"]) == list(range(158, 200))


def test_a_split_by_order_keeps_the_order_of_the_rows(tmp_path: Path) -> None:
    output = {"shuffle": False, "rows_per_file": 50, "rows_per_group": 20}
    prepare_table(tmp_path / "out", recipe(csv(tmp_path), split={"by": "order"}, output=output))
    rows = rows_of(tmp_path / "out")
    assert [*rows["train"], *rows["valid"], *rows["test"]] == list(range(ROWS))
    assert (len(rows["valid"]), len(rows["test"])) == (20, 20)
    footers = [pq.read_metadata(file) for file in sorted((tmp_path / "out" / "train").iterdir())]
    assert [footer.num_rows for footer in footers] == [40, 40, 40, 40]  # whole row groups
    assert footers[0].row_group(0).num_rows == 20


def test_valid_and_test_can_be_separate_files(tmp_path: Path) -> None:
    log, test = csv(tmp_path, raw(150)), csv(tmp_path, raw(50, 150), "test.csv")
    prepare_table(tmp_path / "out", recipe(log, split={"valid": 0.2, "test": str(test)}))
    rows = rows_of(tmp_path / "out")
    assert sorted(rows["test"]) == list(range(150, 200))
    assert sorted(rows["train"] + rows["valid"]) == list(range(150))
    assert rows["valid"]


def test_a_column_can_name_the_split(tmp_path: Path) -> None:
    names = np.array(["train", "valid", "test", "Train"])[np.arange(ROWS) % 4]
    table = raw().append_column("part", pa.array(names))
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), split={"by": "column", "column": "part"}))
    rows = rows_of(tmp_path / "out")
    assert all(row % 4 == 2 for row in rows["test"])
    assert len(rows["train"]) == ROWS // 2
    assert "part" not in written(tmp_path / "out")["train"].column_names
    bad = csv(tmp_path, table.set_column(7, "part", pa.array(names).take(pa.array([0] * ROWS))))
    with pytest.raises(InputError, match="the valid split has no rows"):
        prepare_table(tmp_path / "other", recipe(bad, split={"by": "column", "column": "part"}))
    odd = csv(tmp_path, table.set_column(7, "part", pa.array(["dev"] * ROWS)))
    with pytest.raises(InputError, match=r"column part: found dev; allowed are train, valid and test"):
        prepare_table(tmp_path / "other", recipe(odd, split={"by": "column", "column": "part"}))
