"""Suspicious fields are reported, and good fields are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics import suspicious_fields
from asymdiffrec.datasets.statistics.compute import compute_statistics

ROWS = 4000


def suspicious(folder: Path, labels: np.ndarray, **columns: Any) -> dict[str, str]:
    """Return the reasons for suspicious columns: numbers (float), id lists (lists) and ids (other types)."""

    def config_of(column: pa.Array) -> dict[str, Any]:
        if pa.types.is_floating(column.type):
            return {"type": "number"}
        values = "string" if pa.types.is_string(column.type) else "int"
        return {"type": "id_list" if pa.types.is_list(column.type) else "id", "num_embeddings": 100, "values": values}

    arrays = {name: pa.array(column, from_pandas=True) for name, column in columns.items()}
    arrays["some_id"] = pa.array(np.arange(len(labels)) % 7)
    (folder / "train").mkdir()
    pq.write_table(pa.table({"label": labels, **arrays}), folder / "train/a.parquet", row_group_size=700)
    config = FieldsConfig.model_validate({"fields": {name: config_of(column) for name, column in arrays.items()}})
    return {entry["field"]: entry["why"] for entry in compute_statistics(folder, config)[1]["suspicious"]}


@pytest.fixture
def labels() -> np.ndarray:
    return (np.random.default_rng(0).random(ROWS) < 0.1).astype(np.int64)


def test_fields_that_leak_the_label_are_reported(tmp_path: Path, labels: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    reasons = suspicious(
        tmp_path,
        labels,
        copy=labels.astype(float),
        outcome=np.where(labels, rng.choice(["sold", "paid"], ROWS), "none"),
        almost=np.where(np.arange(ROWS) == np.argmax(labels), 1 - labels, labels) * 3,
        only_then=np.where(labels, rng.normal(size=ROWS), np.nan),
        list_then=[[1, 2] if label else [3] for label in labels],
        later=rng.random(ROWS) + 2 * labels,
        after=rng.random(ROWS) - 2 * labels,
    )
    assert {name: why.partition(";")[0] for name, why in reasons.items()} == {
        "copy": "reveals the label by its value",
        "outcome": "reveals the label by its value",
        "almost": "reveals the label by its value",
        "only_then": "reveals the label by being missing",
        "list_then": "reveals the label by its value",
        "later": "reveals the label by being small or large",
        "after": "reveals the label by being small or large",
    }


def test_fields_without_information_are_reported(tmp_path: Path, labels: np.ndarray) -> None:
    reasons = suspicious(
        tmp_path,
        labels,
        constant_number=np.full(ROWS, 2.5),
        constant_id=np.full(ROWS, 7),
        hardly=np.where(np.arange(ROWS) < 4, 1.0 + np.arange(ROWS), np.nan),
        row=[f"row {row}" for row in range(ROWS)],
    )
    assert reasons == {
        "constant_number": "has the same value in every training row",
        "constant_id": "has the same value in every training row",
        "hardly": "is missing in 99.90% of the training rows",
        "row": "has a different id in nearly every training row, so a model cannot learn from it",
    }


def test_good_fields_are_not_reported(tmp_path: Path, labels: np.ndarray) -> None:
    """Strong fields, rare ids, and values that occur in few rows are not reported either."""
    rng = np.random.default_rng(1)
    missing = rng.random(ROWS) < 0.5
    assert not suspicious(
        tmp_path,
        labels,
        strong=labels + rng.normal(0, 0.6, ROWS),
        stronger=np.where(rng.random(ROWS) < 0.97, labels, 1 - labels),
        user=rng.integers(0, ROWS // 3, ROWS),
        time=np.where(rng.random(ROWS) < 0.05, 5.0, np.arange(ROWS)),
        flag=[None if absent else 1 for absent in missing],
        half=np.where(missing, np.nan, 1.0),
        tags=[[1] * length for length in rng.integers(0, 5, ROWS)],
    )


def test_few_rows_are_not_enough_for_a_report(tmp_path: Path) -> None:
    labels = np.arange(60) % 2
    assert not suspicious(tmp_path, labels, copy=labels.astype(float), row=np.arange(60))


def test_only_the_first_rows_are_checked(tmp_path: Path, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspicious_fields, "MAX_SAMPLE_ROWS", 1000)
    changed = np.where(np.arange(ROWS) < 1000, labels, 1 - labels)
    assert list(suspicious(tmp_path, labels, field=changed)) == ["field"]
