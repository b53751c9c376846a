"""Data sets for measurements of reading speed, and other readers that return the same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch.utils.data import Dataset
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.datasets.decoding.id_hash import hash_ids
from asymdiffrec.datasets.decoding.string_hash import string_ids
from asymdiffrec.datasets.prepare.write_dataset import write_files
from asymdiffrec.datasets.schema import FieldsConfig, Schema, table_seed

TABLE_ROWS = 1_000_000
ROW_GROUP = 16_384


@dataclass(frozen=True)
class Layout:
    """The number of columns of each type in a click log."""

    name: str
    integers: int
    lists: int = 0
    strings: int = 0
    numbers: int = 0

    @property
    def columns(self) -> list[str]:
        """Names of the columns, without the label"""
        counts = {"id": self.integers, "string": self.strings, "list": self.lists, "number": self.numbers}
        return [f"{kind}{number}" for kind, count in counts.items() for number in range(count)]

    def schema(self, threads: int) -> Schema:
        """Return the schema of a job that reads the columns with `threads` threads."""
        fields: dict[str, dict[str, Any]] = {}
        for name in self.columns:
            kind = name.rstrip("0123456789")
            if kind == "number":
                fields[name] = {"type": "number"}
            else:
                fields[name] = {"type": "id_list" if kind == "list" else "id", "num_embeddings": TABLE_ROWS}
                fields[name]["values"] = "string" if kind == "string" else "int"
        return FieldsConfig.model_validate({"fields": fields, "data": {"threads": threads}}).to_schema()

    def write(self, folder: Path, rows: int) -> None:
        """Write a file of random rows in the format of `prepare`. 5 % of the values are null."""
        folder.mkdir()
        rng = np.random.default_rng(0)
        groups = (self._draw(rng, min(ROW_GROUP, rows - start)) for start in range(0, rows, ROW_GROUP))
        write_files(folder, groups, rows_per_file=rows)

    def _draw(self, rng: np.random.Generator, rows: int) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        for name in self.columns:
            missing = rng.random(rows) < 0.05
            if name.startswith("id"):
                columns[name] = pa.array(rng.integers(0, 2**40, rows), mask=missing)
            elif name.startswith("string"):
                words = np.char.mod("%08x", rng.zipf(1.3, rows) % 2**32)
                columns[name] = pa.array(words, mask=missing)
            elif name.startswith("number"):
                columns[name] = pa.array(rng.exponential(10, rows).round(), mask=missing)
            else:
                offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 8, rows))]).astype(np.int32)
                ids = pa.array(rng.integers(0, 2**40, offsets[-1]))
                columns[name] = pa.ListArray.from_arrays(pa.array(offsets), ids)
        return pa.table({**columns, "label": rng.integers(0, 2, rows)})


def tensors(schema: Schema, table: pa.Table) -> tuple[KeyedJaggedTensor, torch.Tensor, torch.Tensor]:
    """Return ids, numeric values and labels of an Arrow table, computed by simple numpy code."""
    values, lengths = [], []
    for name, field in schema.sparse.items():
        column = table.column(name).combine_chunks()
        if field.type == "id_list":
            lengths.append(np.diff(column.offsets.to_numpy()))
            values.append(hash_ids(column.flatten(), table_seed(name), field.num_embeddings))
            continue
        if field.values == "string":
            column = pa.array(string_ids(column), mask=column.is_null().to_numpy(zero_copy_only=False))
        rows = hash_ids(column, table_seed(name), field.num_embeddings)
        lengths.append(rows >= 0)
        values.append(rows[rows >= 0])
    return _batch(schema, values, lengths, [table.column(name).to_numpy() for name in schema.numeric], table["label"])


def _batch(
    schema: Schema, values: list[Any], lengths: list[Any], numbers: list[Any], label: Any
) -> tuple[KeyedJaggedTensor, torch.Tensor, torch.Tensor]:
    ids = KeyedJaggedTensor(
        keys=list(schema.sparse),
        values=torch.from_numpy(np.concatenate(values).astype(np.int64)),
        lengths=torch.from_numpy(np.concatenate(lengths).astype(np.int32)),
    )
    floats = np.stack(numbers, axis=1).astype(np.float32) if numbers else np.empty((len(label), 0), np.float32)
    return ids, torch.from_numpy(np.nan_to_num(floats)), torch.from_numpy(np.asarray(label, np.float32))


class Frame(Dataset[pd.Series]):
    """A torch data set that returns single rows of a pandas frame, as in PyTorch tutorials."""

    def __init__(self, table: pa.Table) -> None:
        self.frame = table.to_pandas(types_mapper=pd.ArrowDtype)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, row: int) -> pd.Series:
        return self.frame.iloc[row]


@dataclass(frozen=True)
class Collate:
    """A collate function that converts rows of a `Frame` to the tensors that `tensors` returns."""

    schema: Schema

    def __call__(self, rows: list[pd.Series]) -> tuple[KeyedJaggedTensor, torch.Tensor, torch.Tensor]:
        values, lengths = [], []
        for name, field in self.schema.sparse.items():
            bags = [self._bag(row[name], field.type == "id_list") for row in rows]
            lengths.append([len(bag) for bag in bags])
            flat = [identity for bag in bags for identity in bag]
            ids = string_ids(pa.array(flat, pa.string())) if field.values == "string" else np.array(flat, np.int64)
            values.append(hash_ids(pa.array(ids), table_seed(name), field.num_embeddings))
        numbers = [[np.nan if pd.isna(row[name]) else row[name] for row in rows] for name in self.schema.numeric]
        return _batch(self.schema, values, lengths, numbers, [row["label"] for row in rows])

    @staticmethod
    def _bag(value: Any, many: bool) -> list[Any]:
        if many:
            return list(value)
        return [] if pd.isna(value) else [value]


def ray_batches(folder: Path, columns: list[str], rows: int, shuffled: int | None) -> Iterator[pa.Table]:
    """Yield batches of `rows` rows that Ray Data reads from a folder, as Arrow tables.

    shuffled: size of the shuffle buffer in rows; None: no shuffling.
    """
    import ray

    data = ray.data.read_parquet(str(folder), columns=columns)
    yield from data.iter_batches(
        batch_size=rows, batch_format="pyarrow", drop_last=True, local_shuffle_buffer_size=shuffled
    )
