"""A wrong row raises an error that names the row, or is counted and left out; every lost row is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from tests.datasets.prepare.table.click_log import ROWS, csv, raw, recipe, written

BROKEN: dict[str, tuple[bytes, str, int]] = {
    "short": (b"5,1\n", r"log\.csv, line 4: Expected Number of Columns: 3 Found: 2: 5,1", 1),
    "long": (b"5,1,2,3\n", r"log\.csv, line 4: Expected Number of Columns: 3 Found: 4", 1),
    "not UTF-8": (
        b"5,caf\xe9,1\n",
        r"log\.csv, line 4: is not UTF-8; for Latin-1 files add --set",
        1,
    ),
    "no number": (b"much,x,1\n", r"log\.csv, row 3, column price: found 'much'; allowed is a number", 1),
    "too large": (b"1e39,x,1\n", r"log\.csv, row 3, column price: found '1e39'; allowed is a number", 1),
    "null label": (
        b"5,x,\n6,x,\n",
        r"log\.csv, row 3, column label: found nothing; allowed is 0 or 1 .*2 rows are wrong",
        2,
    ),
    "odd label": (b"5,x,2\n", r"log\.csv, row 3, column label: found '2'; allowed is 0 or 1", 1),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_wrong_row_is_named_or_counted(tmp_path: Path, kind: str) -> None:
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


def test_an_unclosed_quote_loses_no_row_unreported(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("column", "fields", "message"),
    [
        (
            [[1.0, 2.0]] * 5 + [[1.0]] * 195,
            {"seen": {"weights": "x"}},
            r"row 6, column x: .*at least 0",
        ),
        ([[1.0, 2.0]] * 5 + [[1.0, -2.0]] * 195, {"seen": {"weights": "x"}}, r"row 6, column x: .*1\.0, -2\.0"),
        (
            [3] * 7 + [9] * 193,
            {"x": {"type": "id", "hash": False, "num_embeddings": 9}},
            r"row 8, column x: found '9'.* 0 to 8",
        ),
        (
            [[3]] * 7 + [[3, -1]] * 193,
            {"x": {"type": "id_list", "hash": False, "num_embeddings": 9}},
            r"row 8, .*0 to 8",
        ),
        ([["1"]] * 7 + [["1", "b"]] * 193, {"x": {"type": "id_list", "values": "int"}}, r"row 8, .*integers"),
    ],
)
def test_values_that_training_cannot_use_are_an_error(
    tmp_path: Path, column: list[Any], fields: dict[str, Any], message: str
) -> None:
    table = raw().append_column("seen", pa.array([[1, 2]] * ROWS)).append_column("x", pa.array(column))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet, {message}"):
        prepare_table(tmp_path / "out", recipe(tmp_path / "a.parquet", fields={"row": {"type": "id"}, **fields}))


def test_a_query_can_return_128_bit_integers(tmp_path: Path) -> None:
    by_query = recipe(
        csv(tmp_path), query="SELECT *, row::HUGEINT * 3 AS wide FROM input", fields={"wide": {"type": "id"}}
    )
    prepare_table(tmp_path / "out", by_query.model_copy(update={"infer": False}))
    whole = pa.concat_tables(written(tmp_path / "out").values())
    assert sorted(whole["wide"].to_pylist()) == list(range(0, 3 * ROWS, 3))
