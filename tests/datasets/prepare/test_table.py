"""`prepare table`: each row of the input is in one split once, with its values, or the input is refused by place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.prepare import store
from asymdiffrec.datasets.prepare.recipe import Recipe
from asymdiffrec.datasets.prepare.table import prepare_table

ROWS = 200
SPLITS = ("train", "valid", "test")


def raw(rows: int = ROWS, start: int = 0) -> pa.Table:
    """A small click log; `row` numbers its rows."""
    number = np.arange(start, start + rows)
    return pa.table(
        {
            "row": number,
            "user_id": number % 17 + 1000,
            "city": pa.array([None if k % 10 == 0 else f"city {k % 7}" for k in number.tolist()]),
            "price": pa.array(number / 8, mask=number % 4 == 1),
            "tags": ["|".join(f"t{(k + j) % 5}" for j in range(k % 4)) for k in number.tolist()],
            "time": number // 2,
            "click": number % 2,
        }
    )


def recipe(files: Path | str | list[str], **settings: Any) -> Recipe:
    named = [str(file) for file in files] if isinstance(files, list) else str(files)
    settings = {"fields": {"row": {"type": "id"}}, "infer": True} | settings
    return Recipe.model_validate({"input": {"files": named} | settings.pop("input", {})} | settings)


def csv(folder: Path, table: pa.Table | None = None, name: str = "log.csv") -> Path:
    pacsv.write_csv(raw() if table is None else table, folder / name)
    return folder / name


def written(out: Path) -> dict[str, pa.Table]:
    return {split: pq.read_table(out / split) for split in SPLITS}


def rows_of(out: Path) -> dict[str, list[int]]:
    return {split: table["row"].to_pylist() for split, table in written(out).items()}


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


@pytest.mark.parametrize("form", ["tsv", "gzip", "parquet", "dictionary", "uri", "glob", "folder", "several"])
def test_every_form_of_the_input_gives_the_same_data_set(tmp_path: Path, form: str) -> None:
    reference = csv(tmp_path)
    folder = tmp_path / "input"
    folder.mkdir()
    files: str | list[str] = str(folder)
    table = raw()
    if form == "tsv":
        pacsv.write_csv(table, folder / "a.tsv", pacsv.WriteOptions(delimiter="\t"))
    elif form == "gzip":
        (folder / "a.csv.gz").write_bytes(gzip.compress(reference.read_bytes()))
    elif form in ("parquet", "dictionary"):
        city = table["city"].dictionary_encode() if form == "dictionary" else table["city"]
        pq.write_table(table.set_column(2, "city", city), folder / "a.parquet", row_group_size=30)
    elif form == "several":
        csv(folder, table.slice(0, 90), "a.csv")
        other = table.slice(90).select(list(reversed(table.column_names)))
        csv(folder, other, "b.csv")  # the same columns in another order
    else:
        csv(folder, table, "a.csv")
        (folder / "_SUCCESS").touch()
        files = {"uri": f"file://{folder}/a.csv", "glob": f"{tmp_path}/in*/*.csv"}.get(form, files)
    prepare_table(tmp_path / "one", recipe(reference))
    prepare_table(tmp_path / "other", recipe(files))
    for split, table in written(tmp_path / "one").items():
        assert written(tmp_path / "other")[split].to_pylist() == table.to_pylist()


@given(
    cells=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8),
            st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
            st.one_of(st.none(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
        ),
        min_size=80,
        max_size=120,
    ),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_text_keeps_what_parquet_holds(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[Any, ...]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("table")
    text, integer, real = zip(*cells, strict=True)
    text = tuple(cell.strip() for cell in text)
    number = np.arange(len(cells))
    table = pa.table(
        {
            "row": number,
            "text": pa.array(text, pa.string()),
            "integer": pa.array(integer, pa.int64()),
            "real": pa.array(real, pa.float64()),
            "label": number % 2,
        }
    )
    fields = {
        "row": {"type": "id"},
        "text": {"type": "id", "values": "string"},
        "integer": {"type": "id", "values": "int"},
        "real": {"type": "number"},
    }
    pq.write_table(table, folder / "a.parquet")
    for kind, file in (("text", csv(folder, table)), ("parquet", folder / "a.parquet")):
        prepare_table(folder / kind, recipe(file, fields=fields, infer=False, seed=seed, missing=[""]))
    whole = pa.concat_tables(written(folder / "text").values()).sort_by("row")
    assert whole["text"].to_pylist() == [cell or None for cell in text]
    assert whole["integer"].to_pylist() == list(integer)
    assert whole["real"].to_pylist() == list(real)
    for split, kept in written(folder / "parquet").items():
        assert kept.to_pylist() == written(folder / "text")[split].to_pylist()


def test_the_seed_draws_the_split_and_the_order(tmp_path: Path) -> None:
    file = csv(tmp_path)
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        prepare_table(tmp_path / name, recipe(file, seed=seed))
    one, again, two = (rows_of(tmp_path / name) for name in ("one", "again", "two"))
    assert one == again
    assert set(one["test"]) != set(two["test"])
    assert abs(np.corrcoef(one["train"], np.arange(len(one["train"])))[0, 1]) < 0.3


def test_shares_of_a_random_split_are_met(tmp_path: Path) -> None:
    file = csv(tmp_path, raw(20_000))
    profile = prepare_table(tmp_path / "out", recipe(file, split={"valid": 0.2, "test": 0.05}))
    shares = {split: rows / 20_000 for split, rows in profile["rows"].items()}
    assert shares == pytest.approx({"train": 0.75, "valid": 0.2, "test": 0.05}, abs=0.01)


@pytest.mark.parametrize("time", ["number", "text", "timestamp"])
def test_a_split_by_time_keeps_moments_together_and_tests_on_the_latest(tmp_path: Path, time: str) -> None:
    table = raw()
    order = np.random.default_rng(0).permutation(ROWS)
    seconds = pa.array(table["time"].to_numpy() * 10_000).cast(pa.timestamp("s"))
    if time != "number":
        table = table.set_column(5, "time", seconds.cast(pa.string()) if time == "text" else seconds)
    file = tmp_path / "a.parquet"
    pq.write_table(table.take(order), file)
    prepare_table(tmp_path / "out", recipe(file, time="time", split={"by": "time", "valid": 0.1, "test": 0.205}))
    found = rows_of(tmp_path / "out")
    assert sorted(found["train"]) == list(range(138))
    assert sorted(found["valid"]) == list(range(138, 158))
    assert sorted(found["test"]) == list(range(158, 200))


def test_a_split_by_order_keeps_the_rows_as_they_stand(tmp_path: Path) -> None:
    output = {"shuffle": False, "rows_per_file": 50, "rows_per_group": 20}
    prepare_table(tmp_path / "out", recipe(csv(tmp_path), split={"by": "order"}, output=output))
    found = rows_of(tmp_path / "out")
    assert [*found["train"], *found["valid"], *found["test"]] == list(range(ROWS))
    assert (len(found["valid"]), len(found["test"])) == (20, 20)
    footers = [pq.read_metadata(file) for file in sorted((tmp_path / "out" / "train").iterdir())]
    assert [footer.num_rows for footer in footers] == [40, 40, 40, 40]  # whole row groups
    assert footers[0].row_group(0).num_rows == 20


def test_files_can_be_splits(tmp_path: Path) -> None:
    known, test = csv(tmp_path, raw(150)), csv(tmp_path, raw(50, 150), "test.csv")
    prepare_table(tmp_path / "out", recipe(known, split={"valid": 0.2, "test": str(test)}))
    found = rows_of(tmp_path / "out")
    assert sorted(found["test"]) == list(range(150, 200))
    assert sorted(found["train"] + found["valid"]) == list(range(150))
    assert found["valid"]


def test_a_column_can_tell_the_split(tmp_path: Path) -> None:
    parts = np.array(["train", "valid", "test", "Train"])[np.arange(ROWS) % 4]
    table = raw().append_column("part", pa.array(parts))
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), split={"by": "column", "column": "part"}))
    found = rows_of(tmp_path / "out")
    assert all(row % 4 == 2 for row in found["test"])
    assert len(found["train"]) == ROWS // 2
    assert "part" not in written(tmp_path / "out")["train"].column_names
    bad = csv(tmp_path, table.set_column(7, "part", pa.array(parts).take(pa.array([0] * ROWS))))
    with pytest.raises(InputError, match="the valid split has no rows"):
        prepare_table(tmp_path / "other", recipe(bad, split={"by": "column", "column": "part"}))
    odd = csv(tmp_path, table.set_column(7, "part", pa.array(["dev"] * ROWS)))
    with pytest.raises(InputError, match=r"split\.column part: found dev; allowed are train, valid and test"):
        prepare_table(tmp_path / "other", recipe(odd, split={"by": "column", "column": "part"}))


def test_strings_that_mean_missing_are_the_tables_or_the_fields(tmp_path: Path) -> None:
    cities = ["unknown", "?", "Bern", "-"] * (ROWS // 4)
    table = raw().set_column(2, "city", pa.array(cities)).append_column("town", pa.array(cities))
    fields = {"row": {"type": "id"}, "city": {"missing": ["-", "unknown"]}, "town": {}}
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), fields=fields))
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["city"].to_pylist()[:4] == [None, "?", "Bern", None]
    assert whole["town"].to_pylist()[:4] == ["unknown", None, "Bern", "-"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"column": "user_id", "at_least": 1010}, lambda table: table["user_id"].to_numpy() >= 1010),
        ({"column": "user_id", "positive": ["1003", "1004"]}, lambda table: np.isin(table["user_id"], [1003, 1004])),
        ({"column": "yes"}, lambda table: table["row"].to_numpy() % 2 == 1),
    ],
)
def test_labels_are_made_of_any_column(tmp_path: Path, label: dict[str, Any], expected: Any) -> None:
    table = raw().append_column("yes", pa.array(["true" if k % 2 else "False" for k in range(ROWS)]))
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), label=label))
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["label"].to_pylist() == expected(table).astype(int).tolist()
    assert label["column"] not in yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]


def test_rare_ids_do_not_count_in_the_suggested_rows(tmp_path: Path) -> None:
    words = [f"rare {k}" if k < 100 else f"frequent {k % 4}" for k in range(ROWS)]
    table = raw().append_column("word", pa.array(words))
    profile = prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), min_count=5))
    field = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]["word"]
    assert field["min_count"] == 5
    assert (profile["fields"]["word"]["frequent"], profile["fields"]["word"]["rare"] > 50) == (4, True)
    (reason,) = [column["reason"] for column in profile["columns"] if column["column"] == "word"]
    assert "4 of them in 5 rows or more" in reason


def test_a_field_may_have_another_name_than_its_column_and_lists_have_weights(tmp_path: Path) -> None:
    lists = [list(range(k % 3)) for k in range(ROWS)]
    table = raw().append_column("seen", pa.array(lists))
    table = table.append_column("seconds", pa.array([[0.5] * len(one) for one in lists]))
    pq.write_table(table, tmp_path / "a.parquet")
    fields = {"row": {}, "history": {"column": "seen", "weights": "seconds", "pooling": "sum", "rows": 77}}
    profile = prepare_table(tmp_path / "out", recipe(tmp_path / "a.parquet", fields={**fields, "row": {"type": "id"}}))
    field = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]["history"]
    assert field == {"type": "id_list", "rows": 77, "values": "int", "pooling": "sum", "weights": "seconds"}
    assert profile["fields"]["history"]["mean_length"] == pytest.approx(1.5, abs=0.1)
    assert {"history", "seconds"} <= set(written(tmp_path / "out")["train"].column_names)


def test_a_query_puts_tables_together(tmp_path: Path) -> None:
    users = pa.table({"user_id": np.arange(1000, 1017), "age": np.arange(17) + 20})
    csv(tmp_path, users, "users.csv")
    asked = recipe(
        csv(tmp_path),
        others={"users": {"files": str(tmp_path / "users.csv")}},
        query="SELECT input.*, age::INT AS age FROM input JOIN users USING (user_id);",
    )
    for name in ("out", "again"):
        prepare_table(tmp_path / name, asked)
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["age"].to_pylist() == [row % 17 + 20 for row in range(ROWS)]
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "again")
    with pytest.raises(InputError, match=r"^query: .*nobody"):
        prepare_table(tmp_path / "other", asked.model_copy(update={"query": "SELECT nobody FROM input"}))


BROKEN: dict[str, tuple[bytes, str, int]] = {
    "short": (b"5,1\n", r"log\.csv, line 4: Expected Number of Columns: 3 Found: 2: 5,1", 1),
    "long": (b"5,1,2,3\n", r"log\.csv, line 4: Expected Number of Columns: 3 Found: 4", 1),
    "not UTF-8": (b"5,caf\xe9,1\n", r"log\.csv, line 4: is not UTF-8; is it encoding: latin-1\?", 1),
    "no number": (b"much,x,1\n", r"log\.csv, row 3, column price: found 'much'; allowed is a number", 1),
    "too large": (b"1e39,x,1\n", r"log\.csv, row 3, column price: found '1e39'; allowed is a number", 1),
    "null label": (
        b"5,x,\n6,x,\n",
        r"log\.csv, row 3, column label: found nothing; allowed is 0 or 1 .*2 such rows",
        2,
    ),
    "odd label": (b"5,x,2\n", r"log\.csv, row 3, column label: found '2'; allowed is 0 or 1", 1),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_row_is_named_or_counted(tmp_path: Path, kind: str) -> None:
    line, message, count = BROKEN[kind]
    good = [b"%d,x%d,%d\n" % (row, row % 5, row % 2) for row in range(ROWS)]
    file = tmp_path / "log.csv"
    file.write_bytes(b"price,word,label\n" + b"".join(good[:2]) + line + b"".join(good[2:]))
    fields = {"price": {"type": "number"}, "word": {"type": "id", "values": "string"}}
    with pytest.raises(InputError, match=message):
        prepare_table(tmp_path / "out", recipe(file, fields=fields))
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]

    profile = prepare_table(tmp_path / "out", recipe(file, fields=fields, bad_rows="skip"))
    assert sum(profile["rows"].values()) == ROWS
    (bad,) = profile["bad_rows"]
    assert bad["rows"] == count
    assert all("log.csv, " in example for example in bad["examples"])


def test_a_quote_that_is_not_closed_loses_no_row_in_silence(tmp_path: Path) -> None:
    lines = [f"{row},x{row % 5},{row % 2}" for row in range(ROWS)]
    lines[150] = '150,"oops,0'
    (tmp_path / "log.csv").write_text("price,word,label\n" + "\n".join(lines) + "\n")
    fields = {"price": {"type": "number"}, "word": {"type": "id", "values": "string"}}
    with pytest.raises(InputError, match=r"log\.csv, line 152: .*: 150,\"oops,0") as caught:
        prepare_table(tmp_path / "out", recipe(tmp_path / "log.csv", fields=fields))
    assert len(str(caught.value)) < 600
    profile = prepare_table(tmp_path / "out", recipe(tmp_path / "log.csv", fields=fields, bad_rows="skip"))
    assert sum(profile["rows"].values()) + sum(bad["rows"] for bad in profile["bad_rows"]) == ROWS
    assert all(len(example) < 600 for bad in profile["bad_rows"] for example in bad["examples"])


def test_what_is_declared_is_measured_as_that(tmp_path: Path) -> None:
    tags = ["7" if row % 20 else "a|b" for row in range(ROWS)]
    genres = [f"g{row}|h{row % 2}" for row in range(ROWS)]
    table = raw().append_column("few", pa.array(tags)).append_column("genres", pa.array(genres))
    fields = {"few": {"type": "id_list"}, "genres": {"type": "id"}}
    profile = prepare_table(tmp_path / "out", recipe(csv(tmp_path, table), fields=fields))
    assert profile["fields"]["few"]["cardinality"] == 3
    job = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]
    assert job["few"]["values"] == "string"
    assert job["genres"]["rows"] >= 10_000


def test_lists_in_parquet_lose_what_means_missing_and_hold_ids(tmp_path: Path) -> None:
    words = pa.array([["a", "", "?", f"b{row % 3}"] for row in range(ROWS)])
    table = raw().append_column("words", words).append_column("floats", pa.array([[0.5]] * ROWS))
    pq.write_table(table, tmp_path / "a.parquet")
    profile = prepare_table(tmp_path / "out", recipe(tmp_path / "a.parquet"))
    assert profile["fields"]["words"]["cardinality"] == 4
    assert set(map(len, written(tmp_path / "out")["train"]["words"].to_pylist())) == {2}
    (reason,) = [column["reason"] for column in profile["columns"] if column["column"] == "floats"]
    assert reason == "lists of type DOUBLE[] hold no ids"


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    file = csv(tmp_path)
    for again in (recipe([file, file]), recipe(file, split={"test": str(file)})):
        with pytest.raises(InputError, match=r"log\.csv: is named twice"):
            prepare_table(tmp_path / "out", again)


def test_utf_16_is_read_when_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    text = "label,word\n" + "".join(f"{row % 2},Zürich {row % 3}\n" for row in range(ROWS))
    file.write_bytes(text.encode("utf-16"))
    prepare_table(tmp_path / "out", recipe(file, fields={}, input={"encoding": "utf-16"}))
    assert set(written(tmp_path / "out")["train"]["word"].to_pylist()) == {"Zürich 0", "Zürich 1", "Zürich 2"}


def test_latin_1_is_read_when_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    text = "word,label\n" + "".join(f"café {row % 3},{row % 2}\n" for row in range(ROWS))
    file.write_bytes(text.encode("latin-1"))
    prepare_table(tmp_path / "out", recipe(file, fields={}, input={"encoding": "latin-1"}))
    assert set(written(tmp_path / "out")["train"]["word"].to_pylist()) == {"café 0", "café 1", "café 2"}


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(raw(), first)
    pq.write_table(raw().set_column(1, "user_id", pa.array(["x"] * ROWS)), second)
    message = r"b\.parquet: column user_id is string, but int64 in .*a\.parquet; a column must have one type"
    with pytest.raises(InputError, match=message):
        prepare_table(tmp_path / "out", recipe([first, second]))
    second.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"b\.parquet: not a readable Parquet file"):
        prepare_table(tmp_path / "out", recipe([first, second]))
    one, other = csv(tmp_path, raw(), "c.csv"), csv(tmp_path, raw().drop_columns(["city"]), "d.csv")
    with pytest.raises(InputError, match=r"d\.csv: lacks the column city, unlike the files before it"):
        prepare_table(tmp_path / "out", recipe([one, other]))
    with pytest.raises(InputError, match=r"Parquet and text in one table"):
        prepare_table(tmp_path / "out", recipe([first, one]))


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(raw(), file, compression="zstd", write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[60:90] = bytes(30)
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet"):
        prepare_table(tmp_path / "out", recipe(file))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": {"column": "clicked"}}, r"label: there is no column clicked; the columns are row, user_id"),
        ({"fields": {"town": {}}}, r"fields: town: there is no column town"),
        ({"fields": {"city": {"type": "number"}}}, r"row 2, column city: found 'city 1'; allowed is a number"),
        ({"fields": {"price": {"transform": "log1p", "rows": 3}}}, r"fields\.price.*rows"),
        ({"input": {"files": []}}, r"--input: name at least one file"),
        ({"input": {"files": ["nowhere*.csv"]}}, r"nowhere\*\.csv: no file matches"),
        ({"weight": "click"}, r"column click cannot be both the weight and the label"),
        ({"label": {"column": "time", "at_least": 1000}}, r"every label of the train split is 0; training needs both"),
        (
            {"fields": {"p": {"column": "price"}, "q": {"column": "price"}}},
            r"fields: p and q have the one column price",
        ),
        ({"fields": {"city": {"column": "price"}}}, r"fields: city is the name of another column"),
        ({"split": {"by": "time"}, "ignore": ["time"]}, r"--split time: say with --time"),
        ({"ignore": ["click"], "label": {"column": "city"}}, r"column city: found .* allowed is 0 or 1"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    file = csv(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        prepare_table(tmp_path / "out", recipe(file, **settings))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_names_of_files_and_folders_mean_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "label=1" / "click=5"
    folder.mkdir(parents=True)
    csv(folder, raw(150), "g[1].csv")
    prepare_table(tmp_path / "one", recipe(folder))
    csv(folder, raw(50, 150), "g1.csv")
    prepare_table(tmp_path / "out", recipe(folder))
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["row"].to_pylist() == list(range(ROWS))
    assert whole["label"].to_pylist() == [row % 2 for row in range(ROWS)]


def test_columns_may_have_the_names_that_sql_uses(tmp_path: Path) -> None:
    table = raw().select(["row", "user_id", "city", "price", "tags", "time", "click"])
    table = table.rename_columns(["row", "split", "t", "n", 'q"u', "time", "click"])
    for by in ("random", "time"):
        prepare_table(tmp_path / by, recipe(csv(tmp_path, table), split={"by": by}))
        fields = yaml.safe_load((tmp_path / by / "job.yaml").read_text())["fields"]
        assert {"split", "t", "n", 'q"u'} <= set(fields)


def test_numbers_that_are_names_stay_ids(tmp_path: Path) -> None:
    zips, large = [f"{row % 50:05d}" for row in range(ROWS)], [str(2**63 + row % 40) for row in range(ROWS)]
    table = raw().append_column("zip", pa.array(zips)).append_column("item_id", pa.array(large))
    table = table.append_column("hashed", pa.array(large))
    prepare_table(tmp_path / "out", recipe(csv(tmp_path, table)))
    fields = yaml.safe_load((tmp_path / "out" / "job.yaml").read_text())["fields"]
    assert all(
        (fields[name]["type"], fields[name]["values"]) == ("id", "string") for name in ("zip", "item_id", "hashed")
    )
    assert set(written(tmp_path / "out")["train"]["zip"].to_pylist()) <= set(zips)


def test_a_first_line_without_names_is_told(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("1,2,0\n" * 50)
    with pytest.raises(InputError, match=r"its first line has no names of columns \(1, 2, 0\.\.\.\)"):
        prepare_table(tmp_path / "out", recipe(tmp_path / "log.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"log\.csv: is empty"),
        ("label,word\n", r"the input has no rows"),
        ("label,word\n" + "0,a\n1,a\n" * 50, r"none of the columns became a field; say with --id"),
        ("label,Word,word\n0,a,b\n", r"log\.csv: has the column Word more than once"),
    ],
)
def test_a_table_without_anything_to_learn_from_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        prepare_table(tmp_path / "out", recipe(tmp_path / "log.csv", fields={}))


def test_nothing_is_written_when_it_is_only_asked(tmp_path: Path) -> None:
    told: list[Any] = []
    file = csv(tmp_path)
    assert prepare_table(tmp_path / "out", recipe(file), tell=told.append, write=False) == {}
    assert [choice.column for choice in told[0].choices] == raw().column_names
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(doing: str, share: float | None) -> None:
        if doing == "writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_table(tmp_path / "out", recipe(csv(tmp_path)), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_sorting_needs_no_more_memory_than_it_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is spilled: the rows take more than the memory that the database gets."""
    rows = 600_000
    monkeypatch.setattr(store, "MEMORY", "100MB")
    wide = {f"text {k}": pa.array([f"{row * 7919 % 99991:040d}" for row in range(rows)]) for k in range(4)}
    pq.write_table(pa.table({**wide, "label": np.arange(rows) % 2}), tmp_path / "a.parquet")
    fields = {name: {"type": "id", "values": "string"} for name in wide}
    profile = prepare_table(tmp_path / "out", recipe(tmp_path / "a.parquet", fields=fields))
    assert sum(profile["rows"].values()) == rows
