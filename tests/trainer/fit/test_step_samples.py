"""The samples of a step are those whose checksum the run logged, and they are as in the data files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asymdiffrec.datasets.sample_order import row_checksums
from tests.trainer.runs import records_without_times, result_without_measurements


def test_samples_of_all_steps_are_those_that_the_run_learned_from(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    files = sorted((clicks / "train").glob("*.parquet"))
    tables, first_row, rows_before = [], {}, 0
    for file in files:
        table = pq.read_table(file)
        rows = {"file": pa.array([str(file)] * len(table)), "row": pa.array(range(len(table)))}
        tables.append(table.add_column(0, "row", rows["row"]).add_column(0, "file", rows["file"]))
        first_row[str(file)] = rows_before
        rows_before += len(table)
    data, checksum = pa.concat_tables(tables), 0
    for step in range(1, result_without_measurements(trained)["step"] + 1):
        out = tmp_path / f"{step}.parquet"
        assert command("samples", trained, step, out).status == 0
        samples = pq.read_table(out)
        numbers = np.array([first_row[file] for file in samples["file"].to_pylist()]) + samples["row"].to_numpy()
        assert samples.equals(data.take(numbers).select(samples.column_names).cast(samples.schema))
        checksum += int(row_checksums(numbers.astype(np.uint64)))
    logged = [int(record["row_checksum"], 16) for record in records_without_times(trained) if "row_checksum" in record]
    assert checksum % 2**64 == sum(logged) % 2**64


def test_a_step_that_the_run_does_not_have_is_an_error(
    trained: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    for step in (0, 37):
        outcome = command("samples", trained, step, tmp_path / "out.parquet")
        assert (outcome.status, outcome.err) == (2, f"error: step {step}: the run's steps are 1 to 36\n")
    (tmp_path / "out.parquet").touch()
    outcome = command("samples", trained, 1, tmp_path / "out.parquet")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "exists" in outcome.err
