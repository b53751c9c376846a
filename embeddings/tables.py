"""Embedding tables from the schema, and the look-up that turns a batch into field embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from asymdiffrec.base import Config, InputError
from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.datasets.statistics.statistics import MAX_KNOTS
from asymdiffrec.embeddings.initial_weights import COLUMNS
from asymdiffrec.embeddings.managed.ids import ManagedConfig
from asymdiffrec.embeddings.managed.lookup import ManagedTables
from asymdiffrec.embeddings.optimizers import AdagradConfig, OptimizerConfig, update_in_backward
from asymdiffrec.field_layout import FieldLayout

ShardingType = Literal[
    "data_parallel", "table_wise", "row_wise", "table_row_wise", "column_wise", "table_column_wise", "grid_shard"
]

COLUMN_SPLITS = ("column_wise", "table_column_wise", "grid_shard")
"""Sharding types that may put the columns of one row on several ranks."""


Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
Dtype = Literal["fp32", "fp16"]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TableConfig(Config):
    """What the job asks of one table; the planner chooses what is left out."""

    sharding: Annotated[tuple[ShardingType, ...], BeforeValidator(_listed)] = Field(
        (), description="a sharding type, or a list of those that the planner may choose from"
    )
    kernel: Kernel | None = Field(
        None,
        description="where its rows are: fused, on the device; fused_uvm, in the memory of the GPU's machine; "
        "fused_uvm_caching, there, and those in use on the GPU",
    )
    ranks: int | None = Field(None, gt=0, description="how many ranks hold a part of it")
    dtype: Dtype | None = Field(None, description="type of its weights, where it is not that of the others")
    collision: Literal["hash", "managed"] = Field(
        "hash",
        description="ids share rows as their hash has it; managed: ids seen often have rows to themselves, see managed",
    )

    @model_validator(mode="after")
    def _managed_is_row_wise(self) -> Self:
        asked = {"sharding": self.sharding not in ((), ("row_wise",)), "kernel": self.kernel not in (None, "fused")}
        for name, wrong in {**asked, "ranks": self.ranks is not None}.items():
            if self.collision == "managed" and wrong:
                raise ValueError(f"{name}: a table with collision: managed is row_wise and fused, on all ranks")
        return self


class TablesConfig(Config):
    """The `tables:` section of the job file."""

    embedding_dim: int = Field(16, gt=0, lt=COLUMNS, multiple_of=4, description="columns of a field's embedding")
    init_std: float = Field(0.05, gt=0, description="standard deviation of the initial weights")
    optimizer: OptimizerConfig = Field(AdagradConfig(), description="how tables are updated in the backward pass")
    dtype: Dtype = Field("fp32", description="type of the weights; the optimizer's state is fp32 in any case")
    kernels: tuple[Kernel, ...] = Field(
        ("fused",), min_length=1, description="on GPUs, where the planner may put the rows of tables; see per_table"
    )
    numeric_bins: int = Field(
        64,
        ge=0,
        le=MAX_KNOTS,
        description="pieces of the curve that a number's embedding follows, between values that are learned with the "
        "schema; 0: a line",
    )
    communication: Dtype = Field(
        "fp32", description="how embeddings travel between ranks; with fp16 their gradients do as bf16, on CPUs as fp16"
    )
    per_table: dict[str, TableConfig] = Field({}, description="what is particular to a table, by its name")
    managed: ManagedConfig = Field(ManagedConfig(), description="of the tables with `collision: managed`")
    allow_column_split: bool = Field(
        False,
        description="let rowwise_adagrad split columns: each split then keeps a state of its own, so losses depend on "
        "the plan and a checkpoint loads under the same plan only",
    )

    @property
    def splits_columns(self) -> bool:
        return self.allow_column_split or self.optimizer.name != "rowwise_adagrad"

    @model_validator(mode="after")
    def _splits_are_allowed(self) -> Self:
        for name, table in self.per_table.items():
            splits = [kind for kind in table.sharding if kind in COLUMN_SPLITS]
            if splits and not self.splits_columns:
                raise ValueError(
                    f"per_table.{name}.sharding: {splits[0]} splits columns, which rowwise_adagrad cannot reshard; use "
                    "table_wise, row_wise, table_row_wise or data_parallel, the optimizer adagrad, or "
                    "allow_column_split: true"
                )
        return self

    @property
    def managed_tables(self) -> list[str]:
        return sorted(name for name, table in self.per_table.items() if table.collision == "managed")

    def of(self, table: str) -> TableConfig:
        return self.per_table.get(table, TableConfig())

    def unplaced(self) -> TablesConfig:
        """The same tables, with nothing said about which ranks and memories hold them."""
        anywhere = {"sharding": (), "kernel": None, "ranks": None}
        per_table = {name: table.model_copy(update=anywhere) for name, table in self.per_table.items()}
        return self.model_copy(update={"per_table": per_table, "kernels": ("fused",)})


def embedding_bag_configs(schema: Schema, config: TablesConfig) -> list[EmbeddingBagConfig]:
    """One table for each name, in the schema's order; the fields that share it are its features.

    All of them are pooled by sum, see `FieldColumns`. InputError for a name or a dimension that cannot be held, and for
    a table in `per_table` that the schema lacks.
    """
    configs = []
    for name, table in schema.tables.items():
        field = table.fields[0]
        if "." in name or hasattr(nn.ModuleDict(), name):
            raise InputError(f"fields.{field}: PyTorch cannot hold a table named {name}; set another `table`")
        dim = table.embedding_dim or config.embedding_dim
        if dim % 4 or dim >= COLUMNS:
            raise InputError(f"fields.{field}.embedding_dim: {dim}; a table needs a multiple of 4 below {COLUMNS}")
        configs.append(
            EmbeddingBagConfig(
                name=name,
                num_embeddings=table.num_embeddings,
                embedding_dim=dim,
                feature_names=list(table.fields),
                data_type=DataType[(config.of(name).dtype or config.dtype).upper()],
                init_fn=_filled_when_sharded,
            )
        )
    for name in config.per_table:
        if name not in schema.tables:
            raise InputError(f"tables.per_table: no table is named {name}; the tables are {', '.join(schema.tables)}")
    return configs


def field_layout(schema: Schema, config: TablesConfig) -> FieldLayout:
    """Return the layout of the field vectors, in the schema's order."""
    fields = schema.fields.values()
    widths = tuple(field.embedding_dim or config.embedding_dim for field in fields)
    return FieldLayout(tuple(schema.fields), widths, tuple(field.group for field in fields))


def numeric_embeddings(schema: Schema, config: TablesConfig) -> NumericEmbeddings:
    """Of all number fields, in the schema's order."""
    layout = field_layout(schema, config).select(list(schema.numeric))
    knots = [schema.numeric_statistics(name).standardised_knots(config.numeric_bins) for name in schema.numeric]
    return NumericEmbeddings(layout, config.init_std, knots)


def _filled_when_sharded(weight: torch.Tensor) -> torch.Tensor:
    """Spares TorchRec's pass over the weights: `sharding.shard` fills them by `initial.fill`."""
    return weight


class NumericEmbeddings(nn.Module):
    """A curve for each number field, number * direction + bias + its pieces; zero where the number is missing.

    A piece k between two knots adds clamp((number - knot_k) / (knot_k+1 - knot_k), 0, 1) * piece_k: the encoding of
    Gorishniy et al., "On Embeddings for Numerical Features" (NeurIPS 2022), beside the line, which goes on beyond the
    knots. Pieces start at zero, so that a number begins as a line.
    """

    field_of_column: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    kept: torch.Tensor | None

    def __init__(self, layout: FieldLayout, std: float, knots: Sequence[Sequence[float]] = ()) -> None:
        """layout: the numeric fields; knots: of each field, ascending, or none for lines."""
        super().__init__()
        widths = layout.widths
        self.direction = nn.Parameter(torch.randn(layout.total_width) * std)
        self.bias = nn.Parameter(torch.zeros(layout.total_width))
        self.register_buffer("field_of_column", layout.field_of_column, persistent=False)
        pieces = max((len(own) - 1 for own in knots), default=0)
        self.pieces = nn.Parameter(torch.zeros(len(widths), pieces, max(widths))) if pieces > 0 else None
        # Where a field has fewer, the rest are of infinite length: no number gets anywhere on them.
        start, length = torch.zeros(len(widths), max(0, pieces)), torch.full((len(widths), max(0, pieces)), math.inf)
        for field, own in enumerate(knots):
            if len(own) > 1:
                at = torch.tensor(own)
                start[field, : len(at) - 1], length[field, : len(at) - 1] = at[:-1], at.diff()
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("length", length, persistent=False)
        kept = torch.cat([torch.arange(width) + max(widths) * field for field, width in enumerate(widths)])
        self.register_buffer("kept", kept if len(set(widths)) > 1 else None, persistent=False)

    def forward(self, numbers: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """`numbers` and `missing`, both [B, number fields], to [B, sum of their D_n]."""
        value = numbers.index_select(1, self.field_of_column) * self.direction + self.bias
        if self.pieces is not None:
            passed = ((numbers[:, :, None] - self.start) / self.length).clamp(0, 1)
            curves = torch.einsum("bnk,nkd->bnd", passed, self.pieces).flatten(1)
            value = value + (curves if self.kept is None else curves.index_select(1, self.kept))
        # Columns of floats are picked several times as fast as columns of bools.
        return value * (~missing).to(value.dtype).index_select(1, self.field_of_column)


class FieldColumns(nn.Module):
    """Puts the embeddings of all fields side by side, in the schema's order: those of one look-up or of two.

    A list that is pooled by mean is divided here: TorchRec 1.8 divides a split bag by the wrong length under
    grid_shard, and lists of other tables too where a plan splits the rows of a table that has a mean. Where ids have
    weights, the weights are divided already, see `Batch.ids`.
    """

    def __init__(self, schema: Schema, config: TablesConfig) -> None:
        super().__init__()
        sparse = schema.sparse
        self.sparse = list(sparse)
        self.means = {
            name
            for name, field in sparse.items()
            if isinstance(field, IdListConfig) and field.pooling == "mean" and not schema.weighted
        }
        self.numbers = numeric_embeddings(schema, config) if schema.numeric else None

    def forward(
        self, sums: Sequence[KeyedTensor], ids: KeyedJaggedTensor, numbers: torch.Tensor, missing: torch.Tensor
    ) -> torch.Tensor:
        """The sums of `ids`, `numbers` [B, number fields] and `missing` [B, N] to [B, sum D_n]."""
        if sums[0].keys() == self.sparse and not self.means:
            parts = [sums[0].values()]
        else:
            embedding = {name: pooled for part in sums for name, pooled in part.to_dict().items()}
            parts = [embedding[name] for name in self.sparse]
        return self.joined(parts, ids.lengths().view(len(self.sparse), -1), numbers, missing)

    def joined(
        self, parts: Sequence[torch.Tensor], lengths: torch.Tensor, numbers: torch.Tensor, missing: torch.Tensor
    ) -> torch.Tensor:
        """The sums of each field [B, D_n], or where no list is pooled by mean of all of them in one piece, to
        [B, sum D_n]; `lengths` [hashed fields, B]."""
        if self.means:
            parts = [
                part / own.clamp(min=1).unsqueeze(1) if name in self.means else part
                for name, part, own in zip(self.sparse, parts, lengths, strict=True)
            ]
        if self.numbers:
            parts = [*parts, self.numbers(numbers, missing[:, len(self.sparse) :])]
        return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]


class FieldTables(nn.Module):
    """The look-up: a batch to the pooled embeddings of its fields.

    Tables are on the meta device until the module is sharded; the parameters of numbers are real, and follow torch's
    seed alone. `layout` is that of the field vectors.
    """

    def __init__(self, schema: Schema, config: TablesConfig) -> None:
        super().__init__()
        self.configs = tables = embedding_bag_configs(schema, config)
        self.weighted = schema.weighted
        sparse = [table for table in tables if config.of(table.name).collision == "hash"]
        managed = [table for table in tables if config.of(table.name).collision == "managed"]
        self.ids: nn.Module | None = None
        self.managed: nn.Module | None = None
        if sparse:
            self.ids = EmbeddingBagCollection(sparse, schema.weighted, torch.device("meta"))
        if managed:
            self.managed = ManagedTables(managed, config.managed, schema.weighted)
        update_in_backward(config.optimizer, self.parameters())
        self.columns = FieldColumns(schema, config)
        self.layout = field_layout(schema, config)

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch with `ids`, `numbers` and `missing` to (clean [B, sum D_n], missing [B, N]); zeros where missing.

        Without control flow on what a batch has, and with all arithmetic in a submodule: TorchRec's pipelines trace it
        to find the input of the look-up.
        """
        sums = [self.ids(batch.ids)] if self.ids else []
        sums += [self.managed(batch.ids)[0]] if self.managed else []
        return self.columns(sums, batch.ids, batch.numeric, batch.missing), batch.missing
