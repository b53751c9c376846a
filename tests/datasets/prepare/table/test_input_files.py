"""All forms of input files give the same rows; an error names the file that does not match."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from tests.datasets.prepare.table.click_log import ROWS, csv, raw, recipe, rows_of, written


@pytest.mark.parametrize("form", ["tsv", "gzip", "parquet", "dictionary", "uri", "glob", "folder", "several"])
def test_all_forms_of_input_give_the_same_data_set(tmp_path: Path, form: str) -> None:
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
def test_text_and_parquet_give_the_same_values(
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
    for split, rows in written(folder / "parquet").items():
        assert rows.to_pylist() == written(folder / "text")[split].to_pylist()


def test_a_file_that_is_named_twice_is_an_error(tmp_path: Path) -> None:
    file = csv(tmp_path)
    for again in (recipe([file, file]), recipe(file, split={"test": str(file)})):
        with pytest.raises(InputError, match=r"log\.csv: is named twice"):
            prepare_table(tmp_path / "out", again)


def test_utf_16_is_read_if_the_recipe_says_so(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    text = "label,word\n" + "".join(f"{row % 2},Zürich {row % 3}\n" for row in range(ROWS))
    file.write_bytes(text.encode("utf-16"))
    prepare_table(tmp_path / "out", recipe(file, fields={}, input={"encoding": "utf-16"}))
    assert set(written(tmp_path / "out")["train"]["word"].to_pylist()) == {"Zürich 0", "Zürich 1", "Zürich 2"}


def test_latin_1_is_read_if_the_recipe_says_so(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    text = "word,label\n" + "".join(f"café {row % 3},{row % 2}\n" for row in range(ROWS))
    file.write_bytes(text.encode("latin-1"))
    prepare_table(tmp_path / "out", recipe(file, fields={}, input={"encoding": "latin-1"}))
    assert set(written(tmp_path / "out")["train"]["word"].to_pylist()) == {"café 0", "café 1", "café 2"}


def test_files_with_different_columns_are_an_error(tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(raw(), first)
    pq.write_table(raw().set_column(1, "user_id", pa.array(["x"] * ROWS)), second)
    message = r"b\.parquet: column user_id is string, but int64 in .*a\.parquet; a column must have one type in all"
    with pytest.raises(InputError, match=message):
        prepare_table(tmp_path / "out", recipe([first, second]))
    second.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"b\.parquet: not a readable Parquet file"):
        prepare_table(tmp_path / "out", recipe([first, second]))
    one, other = csv(tmp_path, raw(), "c.csv"), csv(tmp_path, raw().drop_columns(["city"]), "d.csv")
    with pytest.raises(InputError, match=r"d\.csv: has no column city, unlike the previous files"):
        prepare_table(tmp_path / "out", recipe([one, other]))
    with pytest.raises(InputError, match=r"Parquet and text in one table"):
        prepare_table(tmp_path / "out", recipe([first, one]))


def test_the_file_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(raw(), file, compression="zstd", write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[60:90] = bytes(30)
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet"):
        prepare_table(tmp_path / "out", recipe(file))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_special_characters_in_file_and_folder_names_have_no_meaning(tmp_path: Path) -> None:
    folder = tmp_path / "label=1" / "click=5"
    folder.mkdir(parents=True)
    csv(folder, raw(150), "g[1].csv")
    prepare_table(tmp_path / "one", recipe(folder))
    csv(folder, raw(50, 150), "g1.csv")
    prepare_table(tmp_path / "out", recipe(folder))
    whole = pa.concat_tables(written(tmp_path / "out").values()).sort_by("row")
    assert whole["row"].to_pylist() == list(range(ROWS))
    assert whole["label"].to_pylist() == [row % 2 for row in range(ROWS)]


def test_a_first_line_without_names_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("1,2,0\n" * 50)
    with pytest.raises(InputError, match=r"the first line has no column names \(1, 2, 0\.\.\.\)"):
        prepare_table(tmp_path / "out", recipe(tmp_path / "log.csv"))


def test_hive_folders_add_a_column_if_the_recipe_says_so(tmp_path: Path) -> None:
    for day, start in (("mon", 0), ("tue", 100)):
        folder = tmp_path / "log" / f"day={day}" / "deep"
        folder.mkdir(parents=True)
        csv(folder, raw(100, start), "part.csv")
    with pytest.raises(InputError, match=r"log: has folders named day=\.\.\.; use --set input\.hive=true"):
        prepare_table(tmp_path / "out", recipe(tmp_path / "log"))
    prepare_table(tmp_path / "with", recipe(tmp_path / "log", input={"hive": True}))
    prepare_table(tmp_path / "without", recipe(tmp_path / "log", input={"hive": False}))
    whole = pa.concat_tables(written(tmp_path / "with").values()).sort_by("row")
    assert whole["day"].to_pylist() == ["mon"] * 100 + ["tue"] * 100
    assert "day" not in written(tmp_path / "without")["train"].column_names
    assert sum(map(len, rows_of(tmp_path / "without").values())) == ROWS


def test_compressed_files_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(csv(tmp_path, raw(20_000)).read_bytes())
    (tmp_path / "named.csv").write_bytes(packed)
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    for name, message in (("named.csv", "its name must end in .gz"), ("cut.csv.gz", "cannot be read .*GZIP")):
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            prepare_table(tmp_path / "out", recipe(tmp_path / name))


def test_a_tab_can_be_written_with_a_backslash(tmp_path: Path) -> None:
    pacsv.write_csv(raw(), tmp_path / "log.txt", pacsv.WriteOptions(delimiter="\t"))
    prepare_table(tmp_path / "out", recipe(tmp_path / "log.txt", input={"delimiter": "\\t"}))
    assert sum(map(len, rows_of(tmp_path / "out").values())) == ROWS
