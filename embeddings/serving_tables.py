"""Tables for serving: one memory-mapped file from which FBGEMM's inference operator reads rows."""

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
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import ManagedIds
from asymdiffrec.embeddings.numeric_embeddings import field_layout
from asymdiffrec.embeddings.tables import FieldConcat, embedding_bag_configs

Precision = Literal["fp32", "fp16", "int8", "int4"]
ROW_ALIGNMENT = 1
"""Each row's length is rounded up to a multiple of this number of bytes; 1 works because the operator runs on CPU."""
SCALE_BYTES = 4
"""Bytes of a quantised row's scale and smallest value, both fp16."""
PAGE_BYTES = 4096


def write_tables(
    weights: Mapping[str, torch.Tensor], schema: Schema, config: TablesConfig, precision: Precision, file: Path
) -> None:
    """Write the weights [num_embeddings, D] of all tables, by table name, in the layout that `ServedTables` reads.

    int8 and int4 store two fp16 numbers for each row: its smallest value, and its step, which is 1 / 255 or 1 / 15 of
    its range. Each element is stored as the nearest whole number of steps above the smallest value.
    """
    operator = _operator(schema, embedding_bag_configs(schema, config), precision)
    with file.open("wb") as out:
        out.truncate(max(1, operator.host_size))
    mapped = np.memmap(file, np.uint8, "r+")
    for name, offset in zip(operator.feature_names, operator.weights_physical_offsets, strict=True):
        packed = _packed_rows(weights[name], precision).numpy().reshape(-1)
        mapped[offset : offset + packed.size] = packed
    mapped.flush()


def _packed_rows(weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return the rows as bytes [num_embeddings, bytes]; quantised rows start with their scale and smallest value."""
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
    """Return the operator without weights; its features are the sparse fields, in the order of the schema."""
    index = {table.name: number for number, table in enumerate(tables)}
    kind = SparseType.from_dtype(torch.float32) if precision == "fp32" else SparseType(precision)
    return IntNBitTableBatchedEmbeddingBagsCodegen(
        [(table.name, table.num_embeddings, table.embedding_dim, kind, EmbeddingLocation.HOST) for table in tables],
        feature_table_map=[index[schema.table_of(name).name] for name in schema.sparse],
        device="cpu",
        bounds_check_mode=BoundsCheckMode.NONE,  # decoding has checked the range of the ids
        output_dtype=SparseType.FP32,
        row_alignment=ROW_ALIGNMENT,
    )


class Join(nn.Module):
    """The concatenation of the embeddings of all fields, as one module that can be exported and compiled.

    dims: the widths D_n of the sparse fields.
    """

    def __init__(self, concat: FieldConcat, dims: list[int]) -> None:
        super().__init__()
        self.concat, self.dims = concat, dims

    def forward(
        self, sums: torch.Tensor, lengths: torch.Tensor, numeric: torch.Tensor, missing: torch.Tensor
    ) -> torch.Tensor:
        """Return the embeddings [B, sum D_n].

        sums: the pooled sparse fields, [B, sum of dims]. lengths: the number of ids, [sparse fields, B]. numeric:
        [B, numeric fields]. missing: [B, N].
        """
        parts = sums.split(self.dims, dim=1) if self.concat.mean_pooled else [sums]
        return self.concat.concat_parts(parts, lengths, numeric, missing)


class ServedTables(nn.Module):
    """The counterpart of `FieldTables` for serving on CPU: it looks up the pooled embeddings of a batch's fields."""

    def __init__(
        self,
        schema: Schema,
        config: TablesConfig,
        precision: Precision,
        file: Path,
        ids: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Map `file`, which `write_tables` wrote. `ids` has the stored ids of each managed table, by table name.

        Raises InputError if the file does not have the size that the schema and the precision need.
        """
        super().__init__()
        tables = embedding_bag_configs(schema, config)
        self.sparse, self.weighted = list(schema.sparse), schema.weighted
        self.operator = _operator(schema, tables, precision)
        self.bytes = _mapped(file, self.operator.host_size)
        self.operator.initialize_logical_weights_placements_and_offsets()
        self.operator.weights_host, self.operator.weight_initialized = self.bytes, True
        self.layout = field_layout(schema, config)
        self.concat = FieldConcat(schema, config)
        self.join = Join(self.concat, list(self.layout.select(self.sparse).widths))
        self.managed = {name: _managed_ids(schema, config, name, of_table) for name, of_table in (ids or {}).items()}
        self.table_of = {name: schema.table_of(name).name for name in self.sparse}

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (clean [B, sum D_n], missing [B, N]) of a `Batch`; `clean` is zero where a field is missing."""
        return self.join(*self.look_up(batch)), batch.missing

    def look_up(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Look up the ids of a batch and return the arguments of `join`: sums, lengths, numeric, missing."""
        ids = batch.ids
        values = ids.values()
        if self.managed:
            values = torch.cat([self._rows(name, ids[name]) for name in self.sparse])
        sums = self.operator(values, ids.offsets(), ids.weights() if self.weighted else None)
        return sums, ids.lengths().view(len(self.sparse), -1), batch.numeric, batch.missing

    def touch(self) -> int:
        """Read one byte of every page of the tables, so that no request waits for the disk. Return their sum."""
        return int(self.bytes[::PAGE_BYTES].sum())

    def _rows(self, name: str, ids: JaggedTensor) -> torch.Tensor:
        managed = self.managed.get(self.table_of[name])
        rows: torch.Tensor = (ids if managed is None else managed.remap({name: ids})[name]).values()
        return rows


def _mapped(file: Path, size: int) -> torch.Tensor:
    """Return the bytes of a memory-mapped file. Raises InputError if the size is wrong."""
    mapped = np.memmap(file, np.uint8, "r")
    if len(mapped) != max(1, size):
        raise InputError(f"{file}: has {len(mapped):,} bytes, expected {size:,} bytes; export the run again")
    with warnings.catch_warnings():
        # Nothing writes to the array.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(mapped)


def _managed_ids(schema: Schema, config: TablesConfig, table: str, ids: torch.Tensor) -> ManagedIds:
    settings = config.managed.model_copy(update={"admit_after": 1})  # serving admits no ids: no candidates
    managed = ManagedIds(table, schema.tables[table].num_embeddings, settings, torch.device("cpu"))
    managed.eval()
    managed.slots.ids.copy_(ids)
    return managed
