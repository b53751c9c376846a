"""`prepare table`: each input row is in exactly one split, with its values, or an error describes the problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table import database
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from tests.datasets.prepare.table.click_log import ROWS, csv, raw, recipe, rows_of, written


def test_each_row_is_written_once_with_its_values(tmp_path: Path) -> None:
    profile = prepare_table(tmp_path / "out", recipe(csv(tmp_path)))
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["row"].to_pylist() == list(range(ROWS))
    expected = raw()
    for name in ("user_id", "city", "price", "time"):
        assert whole[name].to_pylist() == expected[name].to_pylist(), name
    tags = [text.split("|") if text else None for text in expected["tags"].to_pylist()]
    assert whole["tags"].to_pylist() == tags
    assert whole["label"].to_pylist() == expected["click"].to_pylist()
    assert sum(profile["rows"].values()) == ROWS
    assert profile["bad_rows"] == []

    job = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())
    assert job["data"] == {"path": ".", "label": "label", "user": "user_id", "time": "time"}
    types = {name: field["type"] for name, field in job["fields"].items()}
    assert types == {"row": "id", "user_id": "id", "city": "id", "price": "number", "tags": "id_list"}
    assert job["fields"]["city"]["values"] == "string"
    assert job["fields"]["user_id"]["values"] == "int"
    assert {column["column"] for column in profile["columns"]} == set(expected.column_names)
    assert json.loads((tmp_path / "out" / "profile.json").read_text())["columns"] == profile["columns"]


@pytest.mark.parametrize("rows", [45, 90, 2_000])
def test_the_batch_size_is_at_most_the_training_rows(tmp_path: Path, rows: int) -> None:
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, raw(rows))))
    batch = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["train"]["batch_size"]
    assert batch % 32 == 0
    assert batch <= len(written(tmp_path / "out")["train"])


def test_a_query_joins_tables(tmp_path: Path) -> None:
    users = pa.table({"user_id": np.arange(1000, 1017), "age": np.arange(17) + 20})
    csv(tmp_path, users, "users.csv")
    by_query = recipe(
        csv(tmp_path),
        other_tables={"users": {"files": str(tmp_path / "users.csv")}},
        query="SELECT input.*, age::INT AS age FROM input JOIN users USING (user_id);",
    )
    for name in ("out", "again"):
        prepare_table(tmp_path / name, by_query)
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["age"].to_pylist() == [row % 17 + 20 for row in range(ROWS)]
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "again")
    with pytest.raises(InputError, match=r"^query: .*nobody"):
        prepare_table(tmp_path / "other", by_query.model_copy(update={"query": "SELECT nobody FROM input"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": {"column": "clicked"}}, r"label: there is no column clicked; the columns are row, user_id"),
        ({"fields": {"town": {}}}, r"fields: town: there is no column town"),
        ({"fields": {"city": {"type": "number"}}}, r"row 2, column city: found 'city 1'; allowed is a number"),
        ({"fields": {"price": {"type": "number", "num_embeddings": 3}}}, r"fields\.price.*num_embeddings"),
        ({"input": {"files": []}}, r"--input: no files; specify at least one file"),
        ({"input": {"files": ["nowhere*.csv"]}}, r"nowhere\*\.csv: no file matches"),
        ({"weight": "click"}, r"column click cannot be both the weight and the label"),
        ({"label": {"column": "time", "at_least": 1000}}, r"every label of the train split is 0; training needs both"),
        (
            {"fields": {"p": {"column": "price"}, "q": {"column": "price"}}},
            r"fields: p and q have the same column price",
        ),
        (
            {"fields": {"city": {"column": "price"}}},
            r"fields: .* city has the column price, but another column is named city",
        ),
        ({"split": {"by": "time"}, "ignore": ["time"]}, r"--split time: no time column was found"),
        ({"ignore": ["click"], "label": {"column": "city"}}, r"column city: found .* allowed is 0 or 1"),
        ({"fields": {"city": {"type": "id", "pooling": "sum"}}}, r"^the recipe: fields\.city\.pooling: unknown key;"),
    ],
)
def test_wrong_settings_are_an_error_in_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    file = csv(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        prepare_table(tmp_path / "out", recipe(file, **settings))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"log\.csv: the file or its first line is empty"),
        ("label,word\n", r"the input has no rows"),
        ("label,word\n" + "0,a\n1,a\n" * 50, r"no column became a field; declare fields with --id"),
        ("label,Word,word\n0,a,b\n", r"log\.csv: has the column Word more than once"),
    ],
)
def test_a_table_without_rows_or_fields_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        prepare_table(tmp_path / "out", recipe(tmp_path / "log.csv", fields={}))


def test_nothing_is_written_without_write(tmp_path: Path) -> None:
    layouts: list[Any] = []
    file = csv(tmp_path)
    assert prepare_table(tmp_path / "out", recipe(file), on_layout=layouts.append, write=False) == {}
    assert [choice.column for choice in layouts[0].choices] == raw().column_names
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(phase: str, share: float | None) -> None:
        if phase == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_table(tmp_path / "out", recipe(csv(tmp_path)), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_sorting_stays_within_the_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows need more memory than the limit, so DuckDB writes them to disk."""
    rows = 600_000
    monkeypatch.setattr(database, "MEMORY_LIMIT", "100MB")
    wide = {f"text {k}": pa.array([f"{row * 7919 % 99991:040d}" for row in range(rows)]) for k in range(4)}
    pq.write_table(pa.table({**wide, "label": np.arange(rows) % 2}), tmp_path / "a.parquet")
    fields = {name: {"type": "id", "values": "string"} for name in wide}
    profile = prepare_table(tmp_path / "out", recipe(tmp_path / "a.parquet", fields=fields))
    assert sum(profile["rows"].values()) == rows


def test_a_folder_that_another_process_created_meanwhile_stays_unchanged(tmp_path: Path) -> None:
    def other(phase: str, share: float | None) -> None:
        if phase == "computing statistics":
            (tmp_path / "out").mkdir(exist_ok=True)

    with pytest.raises(InputError, match=r"out: the folder exists; choose another folder"):
        prepare_table(tmp_path / "out", recipe(csv(tmp_path)), progress=other)
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "out"]
