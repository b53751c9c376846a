"""The declared or inferred fields of the columns, and the values that are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from tests.datasets.prepare.table.click_log import ROWS, csv, raw, recipe, written


def test_a_field_can_replace_the_strings_that_mean_missing(tmp_path: Path) -> None:
    cities = ["unknown", "?", "Bern", "-"] * (ROWS // 4)
    table = raw().set_column(2, "city", pa.array(cities)).append_column("town", pa.array(cities))
    fields = {"row": {"type": "id"}, "city": {"missing": ["-", "unknown"]}, "town": {}}
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), fields=fields))
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["city"].to_pylist()[:4] == [None, "?", "Bern", None]
    assert whole["town"].to_pylist()[:4] == ["unknown", None, "Bern", "-"]


def test_empty_text_is_always_missing(tmp_path: Path) -> None:
    rows = "".join(f'{row % 2},"{["", "  ", "?", "Bern"][row % 4]}"\n' for row in range(ROWS))
    (tmp_path / "log.csv").write_text("label,city\n" + rows)
    prepare_table(tmp_path / "out", recipe(tmp_path / "log.csv", fields={"city": {"type": "id"}}, missing=["?"]))
    whole = pa.concat_tables(written(tmp_path / "out").values())
    assert sorted(map(str, set(whole["city"].to_pylist()))) == ["Bern", "None"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"column": "user_id", "at_least": 1010}, lambda table: table["user_id"].to_numpy() >= 1010),
        ({"column": "user_id", "positive": ["1003", "1004"]}, lambda table: np.isin(table["user_id"], [1003, 1004])),
        ({"column": "yes"}, lambda table: table["row"].to_numpy() % 2 == 1),
    ],
)
def test_any_column_can_be_the_label(tmp_path: Path, label: dict[str, Any], expected: Any) -> None:
    table = raw().append_column("yes", pa.array(["true" if k % 2 else "False" for k in range(ROWS)]))
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), label=label))
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["label"].to_pylist() == expected(table).astype(int).tolist()
    assert label["column"] not in yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]


def test_rare_ids_do_not_count_for_the_suggested_size(tmp_path: Path) -> None:
    words = [f"rare {k}" if k < 100 else f"frequent {k % 4}" for k in range(ROWS)]
    table = raw().append_column("word", pa.array(words))
    profile = prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), min_count=5))
    field = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]["word"]
    assert field["min_count"] == 5
    assert (profile["fields"]["word"]["frequent"], profile["fields"]["word"]["rare"] > 50) == (4, True)
    (reason,) = [column["reason"] for column in profile["columns"] if column["column"] == "word"]
    assert "4 of them in at least 5 rows" in reason


def test_a_field_can_have_another_name_than_its_column_and_lists_can_have_weights(tmp_path: Path) -> None:
    lists = [list(range(k % 3)) for k in range(ROWS)]
    table = raw().append_column("seen", pa.array(lists))
    table = table.append_column("seconds", pa.array([[0.5] * len(one) for one in lists]))
    pq.write_table(table, tmp_path / "a.parquet")
    fields = {"row": {}, "history": {"column": "seen", "weights": "seconds", "pooling": "sum", "num_embeddings": 77}}
    profile = prepare_table(tmp_path / "out", recipe(tmp_path / "a.parquet", fields={**fields, "row": {"type": "id"}}))
    field = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]["history"]
    assert field == {"type": "id_list", "num_embeddings": 77, "values": "int", "pooling": "sum", "weights": "seconds"}
    assert profile["fields"]["history"]["mean_length"] == pytest.approx(1.5, abs=0.1)
    assert {"history", "seconds"} <= set(written(tmp_path / "out")["train"].column_names)


def test_a_declared_column_is_counted_by_its_type(tmp_path: Path) -> None:
    tags = ["7" if row % 20 else "a|b" for row in range(ROWS)]
    genres = [f"g{row}|h{row % 2}" for row in range(ROWS)]
    table = raw().append_column("few", pa.array(tags)).append_column("genres", pa.array(genres))
    fields = {"few": {"type": "id_list"}, "genres": {"type": "id"}}
    profile = prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), fields=fields))
    assert profile["fields"]["few"]["cardinality"] == 3
    job = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]
    assert job["few"]["values"] == "string"
    assert job["genres"]["num_embeddings"] >= 10_000


def test_lists_in_parquet_lose_missing_strings_and_must_hold_ids(tmp_path: Path) -> None:
    words = pa.array([["a", "", "?", f"b{row % 3}"] for row in range(ROWS)])
    table = raw().append_column("words", words).append_column("floats", pa.array([[0.5]] * ROWS))
    pq.write_table(table, tmp_path / "a.parquet")
    profile = prepare_table(tmp_path / "out", recipe(tmp_path / "a.parquet"))
    assert profile["fields"]["words"]["cardinality"] == 4
    assert set(map(len, written(tmp_path / "out")["train"]["words"].to_pylist())) == {2}
    (reason,) = [column["reason"] for column in profile["columns"] if column["column"] == "floats"]
    assert reason == "has the type DOUBLE[]; a list of ids needs integers or strings"


def test_columns_can_have_names_that_the_sql_uses(tmp_path: Path) -> None:
    table = raw().select(["row", "user_id", "city", "price", "tags", "time", "click"])
    table = table.rename_columns(["__file", "split", "t", "n", 'q"u', "time", "click"])
    for by in ("random", "time"):
        prepare_table(tmp_path / by, recipe(csv(tmp_path, table), fields={}, split={"by": by}))
        fields = yaml.safe_load((tmp_path / by / "job.yaml").read_text())["fields"]
        assert {"__file", "split", "t", "n", 'q"u'} <= set(fields)


def test_numbers_that_are_ids_keep_their_digits(tmp_path: Path) -> None:
    zips, large = [f"{row % 50:05d}" for row in range(ROWS)], [str(2**63 + row % 40) for row in range(ROWS)]
    table = raw().append_column("zip", pa.array(zips)).append_column("item_id", pa.array(large))
    table = table.append_column("sparse", pa.array(large))
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table)))
    fields = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]
    assert all(
        (fields[name]["type"], fields[name]["values"]) == ("id", "string") for name in ("zip", "item_id", "sparse")
    )
    assert set(written(tmp_path / "out")["train"]["zip"].to_pylist()) <= set(zips)
