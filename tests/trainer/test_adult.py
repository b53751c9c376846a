"""A number-heavy table with real gaps, from its own text files to a model, as a user brings a table of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from asymdiffrec.datasets.profile import learn
from asymdiffrec.trainer import drive
from asymdiffrec.trainer.job import read_job, write_yaml
from asymdiffrec.trainer.run import Run

NUMBERS = ["age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"]


def read(file: Path) -> pa.Table:
    """The table with a column `label`; "?" is null."""
    text = file.read_text().replace(", ", ",").encode()
    options = pc.ConvertOptions(null_values=["?"], strings_can_be_null=True)
    table = pc.read_csv(pa.BufferReader(text), convert_options=options)
    positive = [value.startswith(">50K") for value in table["classification"].to_pylist()]
    return table.drop_columns(["classification"]).append_column("label", pa.array(positive))


def test_adult_is_learned(data_folder: Path, tmp_path: Path) -> None:
    known, test = read(data_folder / "adult" / "adult.data"), read(data_folder / "adult" / "adult.test")
    order = np.random.default_rng(0).permutation(len(known))
    cut = len(order) // 10
    for split, table in {"train": known.take(order[cut:]), "valid": known.take(order[:cut]), "test": test}.items():
        (tmp_path / split).mkdir()
        pq.write_table(table, tmp_path / split / "part.parquet", row_group_size=5000)
    categories = [name for name in known.column_names if name not in (*NUMBERS, "label")]
    fields = {name: {"type": "number"} for name in NUMBERS}
    fields |= {name: {"type": "id", "values": "string", "rows": 1000} for name in categories}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"name": "adult", "fields": fields}))
    job = read_job(tmp_path / "job.yaml", ["train.epochs=4"])
    learned, profile = learn(tmp_path, job)
    write_yaml(tmp_path / "schema.yaml", learned)
    assert 0.05 < profile["fields"]["workclass"]["missing"] < 0.06

    drive.train(job, learned, Run(tmp_path / "run"), resume=False, console=Console(quiet=True))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["test/auc"] > 0.90
