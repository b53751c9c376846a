"""Rows a second from Parquet to batches, against Arrow decoding the same row groups and nothing else."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asymdiffrec.datasets.reader import Position, TrainingReader
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.shards import open_shards
from benchmarks._report import Result, alternate, arguments, show

IDS, LISTS, BATCH = 39, 3, 4096


def write(folder: Path, rows: int, row_group: int) -> None:
    """39 integer columns with 5 % null and three list columns, as a click log has them."""
    rng = np.random.default_rng(0)
    columns: dict[str, pa.Array | np.ndarray] = {
        f"id{column}": pa.array(rng.integers(0, 2**40, rows), mask=rng.random(rows) < 0.05) for column in range(IDS)
    }
    for column in range(LISTS):
        offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 8, rows))]).astype(np.int32)
        values = pa.array(rng.integers(0, 2**40, offsets[-1]))
        columns[f"list{column}"] = pa.ListArray.from_arrays(pa.array(offsets), values)
    columns["label"] = rng.integers(0, 2, rows)
    pq.write_table(pa.table(columns), folder / "part.parquet", row_group_size=row_group)


def main() -> None:
    options = arguments(__doc__ or "")
    rows, row_group = (20_000, 5_000) if options.quick else (1_000_000, 50_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, rows, row_group)
        fields = {f"id{column}": {"type": "id", "rows": 1_000_000} for column in range(IDS)}
        fields |= {f"list{column}": {"type": "id_list", "rows": 1_000_000} for column in range(LISTS)}
        schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
        shards = open_shards(str(folder))
        reader = TrainingReader(schema, shards, 0, BATCH)
        names = shards.schemas[0].names

        def decode() -> None:
            for group in range(len(shards.row_groups)):
                shards.read(group, names)

        def read() -> None:
            for _ in islice(reader.batches(Position()), reader.steps_per_epoch):
                pass

        ours, theirs = alternate(read, decode, rounds=1 if options.quick else 3)
    show([Result("rows to batches", rows / ours, "rows/s", "ParquetFile.read_row_group", rows / theirs)], options.json)


if __name__ == "__main__":
    main()
