"""Embedding tables from the schema, and the look-up that turns a batch into field embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.initial_weights import MAX_EMBEDDING_DIM
from asymdiffrec.embeddings.managed.lookup import ManagedTables
from asymdiffrec.embeddings.numeric_embeddings import field_layout, numeric_embeddings
from asymdiffrec.embeddings.optimizers import update_in_backward


def embedding_bag_configs(schema: Schema, config: TablesConfig) -> list[EmbeddingBagConfig]:
    """Return one config for each table, in the order of the schema. The fields that share a table are its features.

    All tables pool by sum, see `FieldConcat`. Raises InputError for a table name that PyTorch does not allow, for an
    embedding_dim that is not allowed, and for a table in `per_table` that is not in the schema.
    """
    configs = []
    for name, table in schema.tables.items():
        field = table.fields[0]
        if "." in name or hasattr(nn.ModuleDict(), name):
            raise InputError(f"fields.{field}: PyTorch does not allow a table named {name}; set another `table`")
        dim = config.width(table)
        if dim % 4 or dim >= MAX_EMBEDDING_DIM:
            raise InputError(
                f"fields.{field}.embedding_dim: found {dim}, allowed are multiples of 4 below {MAX_EMBEDDING_DIM}"
            )
        configs.append(
            EmbeddingBagConfig(
                name=name,
                num_embeddings=table.num_embeddings,
                embedding_dim=dim,
                feature_names=list(table.fields),
                data_type=DataType[(config.for_table(name).dtype or config.dtype).upper()],
                init_fn=_leave_unfilled,
            )
        )
    for name in config.per_table:
        if name not in schema.tables:
            raise InputError(f"tables.per_table: no table is named {name}; the tables are {', '.join(schema.tables)}")
    return configs


def _leave_unfilled(weight: torch.Tensor) -> torch.Tensor:
    """Return the weights unchanged, so that TorchRec does not initialise them: `sharding.shard` fills them."""
    return weight


class FieldConcat(nn.Module):
    """The concatenation of the embeddings of all fields, in the order of the schema.

    Mean pooling is computed in this module, by a division of the sums, not in TorchRec. TorchRec 1.8 has two defects:
    under grid_shard it divides a split bag by the wrong length; and if a plan splits the rows of a table with mean
    pooling, it divides other lists too. If ids have weights, the weights are already divided, see `Batch.ids`.
    """

    def __init__(self, schema: Schema, config: TablesConfig) -> None:
        super().__init__()
        self.sparse = list(schema.sparse)
        self.mean_pooled = {
            name
            for name, field in schema.sparse.items()
            if isinstance(field, IdListConfig) and field.pooling == "mean" and not schema.weighted
        }
        self.numeric = numeric_embeddings(schema, config) if schema.numeric else None

    def forward(
        self, pooled: Sequence[KeyedTensor], ids: KeyedJaggedTensor, numeric: torch.Tensor, missing: torch.Tensor
    ) -> torch.Tensor:
        """Return the embeddings [B, sum D_n].

        pooled: the results of one or two look-ups of `ids`, pooled by sum. numeric: [B, numeric fields]. missing:
        [B, N].
        """
        if pooled[0].keys() == self.sparse and not self.mean_pooled:
            parts = [pooled[0].values()]
        else:
            by_field = {name: sums for keyed in pooled for name, sums in keyed.to_dict().items()}
            parts = [by_field[name] for name in self.sparse]
        return self.concat_parts(parts, ids.lengths().view(len(self.sparse), -1), numeric, missing)

    def concat_parts(
        self, parts: Sequence[torch.Tensor], lengths: torch.Tensor, numeric: torch.Tensor, missing: torch.Tensor
    ) -> torch.Tensor:
        """Return the embeddings [B, sum D_n].

        parts: the sums of each sparse field, [B, D_n]; one tensor with all fields is allowed if no list has mean
        pooling. lengths: the number of ids, [sparse fields, B]. numeric: [B, numeric fields]. missing: [B, N].
        """
        if self.mean_pooled:
            parts = [
                part / length.clamp(min=1).unsqueeze(1) if name in self.mean_pooled else part
                for name, part, length in zip(self.sparse, parts, lengths, strict=True)
            ]
        if self.numeric:
            parts = [*parts, self.numeric(numeric, missing[:, len(self.sparse) :])]
        return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]


class FieldTables(nn.Module):
    """The look-up of the pooled embeddings of a batch's fields.

    Tables are on the meta device until the module is sharded. The parameters of numeric fields are real and depend on
    torch's seed only. `layout` is the layout of the field vectors.
    """

    def __init__(self, schema: Schema, config: TablesConfig) -> None:
        super().__init__()
        self.configs = tables = embedding_bag_configs(schema, config)
        self.weighted = schema.weighted
        hashed = [table for table in tables if config.for_table(table.name).collision == "hash"]
        managed = [table for table in tables if config.for_table(table.name).collision == "managed"]
        self.ids: nn.Module | None = None
        self.managed: nn.Module | None = None
        if hashed:
            self.ids = EmbeddingBagCollection(hashed, schema.weighted, torch.device("meta"))
        if managed:
            self.managed = ManagedTables(managed, config.managed, schema.weighted)
        update_in_backward(config.optimizer, self.parameters())
        self.concat = FieldConcat(schema, config)
        self.layout = field_layout(schema, config)

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (clean [B, sum D_n], missing [B, N]); `clean` is zero where a field is missing.

        The batch has the attributes `ids`, `numeric` and `missing`. No control flow depends on the batch, and all
        arithmetic is in a submodule, because TorchRec's pipelines trace this method to find the input of the look-up.
        """
        pooled = [self.ids(batch.ids)] if self.ids else []
        pooled += [self.managed(batch.ids)[0]] if self.managed else []
        return self.concat(pooled, batch.ids, batch.numeric, batch.missing), batch.missing
