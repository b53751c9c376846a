"""Batch prediction with a simple model. The tests compute the score of each row independently."""

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

NUM_EMBEDDINGS = 9
SCHEMA = FieldsConfig.model_validate(
    {
        "data": {"label": "clicked", "user": "user", "time": "at"},
        "fields": {
            "price": {"type": "number"},
            "tags": {"type": "id_list", "num_embeddings": NUM_EMBEDDINGS, "hash": False},
            "slot": {"type": "id", "num_embeddings": NUM_EMBEDDINGS, "hash": False},
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
    """A model whose logit depends on all parts of a sample: ids, lists, numbers and the missing fields."""

    def score(self, batch: Batch) -> torch.Tensor:
        assert not self.training
        assert batch.ids.keys() == ["tags", "slot"]
        lengths = batch.ids.lengths().long()
        bags = torch.segment_reduce(batch.ids.values().float(), "sum", lengths=lengths, initial=0).view(2, len(batch))
        missing = batch.missing.float() @ torch.tensor([0.7, 0.5, -0.9])
        return -0.05 * bags[0] + 0.1 * bags[1] + 0.3 * batch.numeric[:, 0] + missing


def expected_score(row: dict[str, Any]) -> float:
    """Return the probability that `Model` gives for a row."""
    tags = [tag for tag in row["tags"] or [] if tag is not None]
    price = None if row["price"] is None or math.isnan(row["price"]) else (row["price"] - 2) / 4
    logit = -0.05 * sum(tags) if tags else 0.7
    logit += 0.5 if row["slot"] is None else 0.1 * row["slot"]
    logit += -0.9 if price is None else 0.3 * price
    return 1 / (1 + math.exp(-logit))


def make_table(rows: int, seed: int = 0) -> pa.Table:
    """Return samples without a label; every field is missing in some of them, as null, NaN or an empty list."""
    rng = np.random.default_rng(seed)

    def sometimes(value: Any) -> Any:
        return value if rng.random() < 0.7 else None

    samples = [
        {
            "note": sometimes(str(rng.integers(4))),
            "slot": sometimes(int(rng.integers(NUM_EMBEDDINGS))),
            "price": sometimes(math.nan if rng.random() < 0.2 else rng.normal()),
            "at": sometimes(datetime.fromtimestamp(int(rng.integers(2**31)), UTC)),
            "tags": sometimes([sometimes(int(tag)) for tag in rng.integers(NUM_EMBEDDINGS, size=rng.integers(4))]),
            "detail": sometimes({"price": int(rng.integers(9)), "tags": ["a"] * int(rng.integers(3))}),
        }
        for _ in range(rows)
    ]
    return pa.Table.from_pylist(samples, ARROW)


def write_file(folder: Path, name: str, groups: list[pa.Table]) -> None:
    """Write a Parquet file with a row group for each table."""
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
def test_output_has_all_rows_and_columns_in_order_with_their_scores(files: list[list[int]], batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        data, out, advances = Path(temporary) / "data", Path(temporary) / "new" / "out.parquet", []
        tables = [
            [make_table(rows, 10 * file + group) for group, rows in enumerate(sizes)]
            for file, sizes in enumerate(files)
        ]
        for file, groups in enumerate(tables):
            write_file(data, f"part-{file}", groups)
        rows = predict_shards(Model(), SCHEMA, open_shards(str(data)), out, batch_size, CPU, advances.append)
        samples = pa.concat_tables(group for groups in tables for group in groups)
        scored = pq.read_table(out)
        assert list(out.parent.iterdir()) == [out]
    assert rows == len(samples)
    assert advances == [size for sizes in files for size in sizes if size]
    assert scored.schema == ARROW.append(pa.field("score", pa.float32()))
    columns = scored.drop_columns(["score"])
    # NaN is not equal to itself, so prices are compared as text.
    assert list(map(repr, columns["price"].to_pylist())) == list(map(repr, samples["price"].to_pylist()))
    assert columns.drop_columns(["price"]).equals(samples.drop_columns(["price"]))
    assert scored["score"].to_pylist() == pytest.approx([expected_score(row) for row in samples.to_pylist()], rel=1e-5)


def test_label_and_user_are_copied_without_being_checked(tmp_path: Path) -> None:
    samples = make_table(5).append_column("clicked", [[None, 7, 0, 1, None]]).append_column("user", [[0.5] * 5])
    write_file(tmp_path / "data", "part", [samples])
    out = tmp_path / "out.parquet"
    predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 8, CPU)
    scored = pq.read_table(out)
    assert scored["clicked"].to_pylist() == [None, 7, 0, 1, None]
    assert scored["score"].to_pylist() == pytest.approx([expected_score(row) for row in samples.to_pylist()], rel=1e-5)


Change = Callable[[pa.Table], pa.Table]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda samples: samples.append_column("score", [[0.5] * 4]), "already has a column named score"),
        (lambda samples: samples.append_column("extra", [[0] * 4]), "its columns differ from the columns of"),
        (lambda samples: samples.select(ARROW.names[::-1]), "its columns differ from the columns of"),
        (
            lambda samples: samples.cast(ARROW.set(1, pa.field("slot", pa.int64()))),
            "its columns differ from the columns of",
        ),
        (lambda samples: samples.drop_columns(["tags"]), "lacks the column tags"),
    ],
)
def test_wrong_columns_leave_nothing_behind(tmp_path: Path, change: Change, message: str) -> None:
    write_file(tmp_path / "data", "part-0", [make_table(4)])
    write_file(tmp_path / "data", "part-1", [change(make_table(4))])
    with pytest.raises(InputError, match=message) as raised:
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), tmp_path / "new" / "out.parquet", 8, CPU)
    assert str(raised.value).startswith(str(tmp_path / "data" / "part-1.parquet"))
    assert not (tmp_path / "new").exists()


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    write_file(tmp_path / "data", "part", [make_table(4)])
    out = tmp_path / "out.parquet"
    out.write_text("precious")
    with pytest.raises(InputError, match="exists"):
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 8, CPU)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.parquet"]


def test_wrong_value_in_a_later_row_group_leaves_nothing_behind(tmp_path: Path) -> None:
    slots = pa.array([0, None, NUM_EMBEDDINGS, 1], ARROW.field("slot").type)
    write_file(tmp_path / "data", "part", [make_table(4), make_table(4).set_column(1, ARROW.field("slot"), slots)])
    advances: list[int] = []
    out = tmp_path / "new" / "out.parquet"
    with pytest.raises(
        InputError,
        match=rf"row group 1, column slot, row 2: id {NUM_EMBEDDINGS} .* allowed is 0 to {NUM_EMBEDDINGS - 1}",
    ):
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 3, CPU, advances.append)
    assert advances == [4]
    assert list(out.parent.iterdir()) == []


def test_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    write_file(tmp_path / "data", "part", [make_table(4), make_table(4)])
    out = tmp_path / "new" / "out.parquet"

    def interrupt(rows: int) -> None:
        assert list(out.parent.iterdir()) != [out]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_shards(Model(), SCHEMA, open_shards(str(tmp_path / "data")), out, 3, CPU, interrupt)
    assert list(out.parent.iterdir()) == []
