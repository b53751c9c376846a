"""Batch prediction with a stand-in for the model, whose score of a row is known."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.datasets.statistics.statistics import NumericStatistics, Statistics
from asymdiffrec.serving.batch_prediction import predict_shards

ROWS = 9
SCHEMA = FieldsConfig.model_validate(
    {
        "data": {"label": "clicked", "user": "user", "time": "at"},
        "fields": {
            "price": {"type": "number"},
            "tags": {"type": "id_list", "num_embeddings": ROWS, "hash": False},
            "slot": {"type": "id", "num_embeddings": ROWS, "hash": False},
        },
    }
).to_schema(Statistics(rows={"train": 9}, label_rate=0.5, numeric={"price": NumericStatistics(mean=2, std=4)}))
ARROW = pa.schema(
    {
        "note": pa.dictionary(pa.int32(), pa.string()),
        "slot": pa.int32(),
        "price": pa.float64(),
        "at": pa.timestamp("ms", tz="UTC"),
        "tags": pa.list_(pa.int64()),
        "detail": pa.struct({"price": pa.int8(), "tags": pa.list_(pa.string())}),
    }
)
CPU = torch.device("cpu")


class Model(torch.nn.Module):
    """A logit from everything that a sample has: ids, list sums, numbers and which fields are missing."""

    def score(self, batch: Batch) -> torch.Tensor:
        assert not self.training
        assert batch.ids.keys() == ["tags", "slot"]
        lengths = batch.ids.lengths().long()
        bags = torch.segment_reduce(batch.ids.values().float(), "sum", lengths=lengths, initial=0).view(2, len(batch))
        missing = batch.missing.float() @ torch.tensor([0.7, 0.5, -0.9])
        return -0.05 * bags[0] + 0.1 * bags[1] + 0.3 * batch.numeric[:, 0] + missing


def reference(row: dict[str, Any]) -> float:
    tags = [tag for tag in row["tags"] or [] if tag is not None]
    price = None if row["price"] is None or math.isnan(row["price"]) else (row["price"] - 2) / 4
    logit = -0.05 * sum(tags) if tags else 0.7
    logit += 0.5 if row["slot"] is None else 0.1 * row["slot"]
    logit += -0.9 if price is None else 0.3 * price
    return 1 / (1 + math.exp(-logit))


def table(rows: int, seed: int = 0) -> pa.Table:
    """Samples without a label; every field is missing in some of them, in each way that it can be."""
    rng = np.random.default_rng(seed)

    def sometimes(value: Any) -> Any:
        return value if rng.random() < 0.7 else None

    samples = [
        {
            "note": sometimes(str(rng.integers(4))),
            "slot": sometimes(int(rng.integers(ROWS))),
            "price": sometimes(math.nan if rng.random() < 0.2 else rng.normal()),
            "at": sometimes(datetime.fromtimestamp(int(rng.integers(2**31)), UTC)),
            "tags": sometimes([sometimes(int(tag)) for tag in rng.integers(ROWS, size=rng.integers(4))]),
            "detail": sometimes({"price": int(rng.integers(9)), "tags": ["a"] * int(rng.integers(3))}),
        }
        for _ in range(rows)
    ]
    return pa.Table.from_pylist(samples, ARROW)


def write(folder: Path, name: str, groups: list[pa.Table]) -> None:
    folder.mkdir(exist_ok=True)
    with pq.ParquetWriter(folder / f"{name}.parquet", groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    files=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), min_size=1, max_size=3).filter(
        lambda files: any(map(any, files))
    ),
    batch_size=st.integers(1, 9),
)
def test_rows_keep_their_order_and_columns_and_get_their_scores(files: list[list[int]], batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        data, out, advances = Path(temporary) / "data", Path(temporary) / "new" / "out.parquet", []
        tables = [[table(rows, 10 * file + g) for g, rows in enumerate(sizes)] for file, sizes in enumerate(files)]
        for file, groups in enumerate(tables):
            write(data, f"part-{file}", groups)
        rows = predict_shards(Model(), SCHEMA, open_shards(str(data)), out, batch_size, CPU, advances.append)
        given = pa.concat_tables(group for groups in tables for group in groups)
        scored = pq.read_table(out)
        assert list(out.parent.iterdir()) == [out]
    assert rows == len(given)
    assert advances == [size for sizes in files for size in sizes if size]
    assert scored.schema == ARROW.append(pa.field("score", pa.float32()))
    kept = scored.drop_columns(["score"])
    # Arrow holds NaN unequal to itself: prices are compared by their digits.
    assert list(map(repr, kept["price"].to_pylist())) == list(map(repr, given["price"].to_pylist()))
    assert kept.drop_columns(["price"]).equals(given.drop_columns(["price"]))
    assert scored["score"].to_pylist() == pytest.approx([reference(row) for row in given.to_pylist()], rel=1e-5)


def test_label_and_user_are_passed_on_unread(tmp_path: Path) -> None:
    samples = table(5).append_column("clicked", [[None, 7, 0, 1, None]]).append_column("user", [[0.5] * 5])
    write(tmp_path / "data", "part", [samples])
    out = tmp_path / "out.parquet"
    predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 8, CPU)
    scored = pq.read_table(out)
    assert scored["clicked"].to_pylist() == [None, 7, 0, 1, None]
    assert scored["score"].to_pylist() == pytest.approx([reference(row) for row in samples.to_pylist()], rel=1e-5)


Change = Callable[[pa.Table], pa.Table]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda samples: samples.append_column("score", [[0.5] * 4]), "already has a column named score"),
        (lambda samples: samples.append_column("extra", [[0] * 4]), "its columns differ from those of"),
        (lambda samples: samples.select(ARROW.names[::-1]), "its columns differ from those of"),
        (lambda samples: samples.cast(ARROW.set(1, pa.field("slot", pa.int64()))), "its columns differ from those of"),
        (lambda samples: samples.drop_columns(["tags"]), "lacks the column tags"),
    ],
)
def test_wrong_columns_leave_nothing_behind(tmp_path: Path, change: Change, message: str) -> None:
    write(tmp_path / "data", "part-0", [table(4)])
    write(tmp_path / "data", "part-1", [change(table(4))])
    with pytest.raises(InputError, match=message) as raised:
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), tmp_path / "new" / "out.parquet", 8, CPU)
    assert str(raised.value).startswith(str(tmp_path / "data" / "part-1.parquet"))
    assert not (tmp_path / "new").exists()


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path / "data", "part", [table(4)])
    out = tmp_path / "out.parquet"
    out.write_text("precious")
    with pytest.raises(InputError, match="exists"):
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 8, CPU)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.parquet"]


def test_a_wrong_value_in_a_later_row_group_leaves_nothing_behind(tmp_path: Path) -> None:
    slots = pa.array([0, None, ROWS, 1], ARROW.field("slot").type)
    write(tmp_path / "data", "part", [table(4), table(4).set_column(1, ARROW.field("slot"), slots)])
    advances: list[int] = []
    out = tmp_path / "new" / "out.parquet"
    with pytest.raises(InputError, match=rf"row group 1, column slot, row 2: id {ROWS} .* allowed is 0 to {ROWS - 1}"):
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 3, CPU, advances.append)
    assert advances == [4]
    assert list(out.parent.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "data", "part", [table(4), table(4)])
    out = tmp_path / "new" / "out.parquet"

    def interrupt(rows: int) -> None:
        assert list(out.parent.iterdir()) != [out]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 3, CPU, interrupt)
    assert list(out.parent.iterdir()) == []
