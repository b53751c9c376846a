"""Tables for serving: bytes in one file, mapped into memory, that FBGEMM's operator for inference looks up."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import JaggedTensor

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.managed.ids import ManagedIds
from asymdiffrec.embeddings.tables import FieldColumns, TablesConfig, embedding_bag_configs, field_layout

Precision = Literal["fp32", "fp16", "int8", "int4"]
ALIGNMENT = 1
"""Of a row in bytes: operators for CPUs read rows of any length"""
SCALE_BYTES = 4
"""Of a row's scale and least value, both fp16"""


def write_tables(
    weights: Mapping[str, torch.Tensor], schema: Schema, config: TablesConfig, precision: Precision, file: Path
) -> None:
    """Write the weights [rows, D] of all tables, by name, as `ServedTables` maps them.

    int8 and int4 keep for each row its least value and 1 / 255 or 1 / 15 of its range, in fp16, and of each element the
    nearest of the 256 or 16 steps from there.
    """
    operator = _operator(schema, embedding_bag_configs(schema, config), precision)
    with file.open("wb") as out:
        out.truncate(max(1, operator.host_size))
    whole = np.memmap(file, np.uint8, "r+")
    for name, place in zip(operator.feature_names, operator.weights_physical_offsets, strict=True):
        packed = _packed(weights[name], precision).numpy().reshape(-1)
        whole[place : place + packed.size] = packed
    whole.flush()


def _packed(weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Rows [rows, bytes]: where they are rounded, the scale and the least value first."""
    weight = weight.detach().cpu().contiguous()
    if precision == "fp32":
        return weight.float().view(torch.uint8)
    if precision == "fp16":
        return weight.half().view(torch.uint8)
    bits = int(precision.removeprefix("int"))
    fused = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(weight.float(), bits)
    return torch.cat([fused[:, -SCALE_BYTES:], fused[:, :-SCALE_BYTES]], dim=1)


def _operator(
    schema: Schema, tables: list[EmbeddingBagConfig], precision: Precision
) -> IntNBitTableBatchedEmbeddingBagsCodegen:
    """Without weights. Its features are the id and id_list fields, in the order of the schema."""
    place = {table.name: number for number, table in enumerate(tables)}
    kind = SparseType.from_dtype(torch.float32) if precision == "fp32" else SparseType(precision)
    return IntNBitTableBatchedEmbeddingBagsCodegen(
        [(table.name, table.num_embeddings, table.embedding_dim, kind, EmbeddingLocation.HOST) for table in tables],
        feature_table_map=[place[schema.table_of(name).name] for name in schema.sparse],
        device="cpu",
        bounds_check_mode=BoundsCheckMode.NONE,  # ids come from `decode`, which lets none out of its range
        output_dtype=SparseType.FP32,
        row_alignment=ALIGNMENT,
    )


class Join(nn.Module):
    """The embeddings of all fields side by side. dims: D_n of those with ids."""

    def __init__(self, columns: FieldColumns, dims: list[int]) -> None:
        super().__init__()
        self.columns, self.dims = columns, dims

    def forward(
        self, sums: torch.Tensor, lengths: torch.Tensor, numbers: torch.Tensor, missing: torch.Tensor
    ) -> torch.Tensor:
        """[B, sum D_n] of the sums of ids [B, their D_n], `lengths` [their fields, B], `numbers` [B, number fields] and
        `missing` [B, N]."""
        parts = sums.split(self.dims, dim=1) if self.columns.means else [sums]
        return self.columns.joined(parts, lengths, numbers, missing)


class ServedTables(nn.Module):
    """As `FieldTables`, on CPU and for look-ups alone: a batch to the pooled embeddings of its fields."""

    def __init__(
        self,
        schema: Schema,
        config: TablesConfig,
        precision: Precision,
        file: Path,
        ids: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """`file` is of `write_tables`; `ids` those of each managed table, by its name."""
        super().__init__()
        tables = embedding_bag_configs(schema, config)
        self.sparse, self.weighted = list(schema.sparse), schema.weighted
        self.operator = _operator(schema, tables, precision)
        self.bytes = _mapped(file, self.operator.host_size)
        self.operator.initialize_logical_weights_placements_and_offsets()
        self.operator.weights_host, self.operator.weight_initialized = self.bytes, True
        self.layout = field_layout(schema, config)
        self.columns = FieldColumns(schema, config)
        self.join = Join(self.columns, list(self.layout.select(self.sparse).widths))
        self.managed = {name: _managed(schema, config, name, own) for name, own in (ids or {}).items()}
        self.table_of = {name: schema.table_of(name).name for name in self.sparse}

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """A `Batch` to (clean [B, sum D_n], missing [B, N]); zeros where missing."""
        return self.join(*self.looked_up(batch)), batch.missing

    def looked_up(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `join` takes."""
        ids = batch.ids
        values = ids.values()
        if self.managed:
            values = torch.cat([self._rows(name, ids[name]) for name in self.sparse])
        sums = self.operator(values, ids.offsets(), ids.weights() if self.weighted else None)
        return sums, ids.lengths().view(len(self.sparse), -1), batch.numeric, batch.missing

    def touch(self) -> int:
        """Read every page of the tables, so that no request waits for the disk; the sum of what was read."""
        return int(self.bytes[::4096].sum())

    def _rows(self, name: str, ids: JaggedTensor) -> torch.Tensor:
        known = self.managed.get(self.table_of[name])
        rows: torch.Tensor = (ids if known is None else known.remap({name: ids})[name]).values()
        return rows


def _mapped(file: Path, size: int) -> torch.Tensor:
    """The bytes of a file, which are read as they are needed; InputError where they are not as many as there should."""
    found = np.memmap(file, np.uint8, "r")
    if len(found) != max(1, size):
        raise InputError(f"{file}: has {len(found):,} bytes; {size:,} are expected")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and nothing writes there
        return torch.from_numpy(found)


def _managed(schema: Schema, config: TablesConfig, table: str, ids: torch.Tensor) -> ManagedIds:
    settings = config.managed.model_copy(update={"admit_after": 1})  # without room for candidates: none is admitted
    made = ManagedIds(table, schema.tables[table].num_embeddings, settings, torch.device("cpu"))
    made.eval()
    made.held.ids.copy_(ids)
    return made
