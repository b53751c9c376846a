"""The samples of a step, as the files have them, beside what the run says that it learned from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asymdiffrec.datasets.sample_order import row_checksums
from tests.trainer.runs import ended, logged


def test_samples_of_all_steps_are_those_learned_from(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    files = sorted((clicks / "train").glob("*.parquet"))
    whole, first, read = [], {}, 0
    for file in files:
        table = pq.read_table(file)
        rows = {"file": pa.array([str(file)] * len(table)), "row": pa.array(range(len(table)))}
        whole.append(table.add_column(0, "row", rows["row"]).add_column(0, "file", rows["file"]))
        first[str(file)] = read
        read += len(table)
    data, seen = pa.concat_tables(whole), 0
    for step in range(1, ended(trained)["step"] + 1):
        out = tmp_path / f"{step}.parquet"
        assert command("samples", trained, step, out).status == 0
        found = pq.read_table(out)
        numbers = np.array([first[file] for file in found["file"].to_pylist()]) + found["row"].to_numpy()
        assert found.equals(data.take(numbers).select(found.column_names).cast(found.schema))
        seen += int(row_checksums(numbers.astype(np.uint64)))
    assert (
        seen % 2**64
        == sum(int(record["row_checksum"], 16) for record in logged(trained) if "row_checksum" in record) % 2**64
    )


def test_a_step_that_is_not_there(trained: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    for step in (0, 37):
        outcome = command("samples", trained, step, tmp_path / "out.parquet")
        assert (outcome.status, outcome.err) == (2, f"error: step {step}: the run's steps are 1 to 36\n")
    (tmp_path / "out.parquet").touch()
    outcome = command("samples", trained, 1, tmp_path / "out.parquet")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "exists" in outcome.err
