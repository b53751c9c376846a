"""The `tables:` section of the job file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from asymdiffrec.base import Config
from asymdiffrec.datasets.schema import FieldConfig, Table
from asymdiffrec.datasets.statistics.statistics import MAX_KNOTS
from asymdiffrec.embeddings.initial_weights import MAX_EMBEDDING_DIM
from asymdiffrec.embeddings.managed.ids import ManagedConfig
from asymdiffrec.embeddings.optimizers import AdagradConfig, OptimizerConfig

ShardingType = Literal[
    "data_parallel", "table_wise", "row_wise", "table_row_wise", "column_wise", "table_column_wise", "grid_shard"
]

COLUMN_SPLITS = ("column_wise", "table_column_wise", "grid_shard")
"""Sharding types that can put the columns of one row on several ranks."""

Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
Dtype = Literal["fp32", "fp16"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TableConfig(Config):
    """The settings of one table, `tables.per_table.NAME`.

    The planner chooses sharding, kernel and ranks if the job does not set them.
    """

    sharding: Annotated[tuple[ShardingType, ...], BeforeValidator(_as_list)] = Field(
        (), description="a sharding type, or a list of sharding types from which the planner chooses"
    )
    kernel: Kernel | None = Field(
        None,
        description="where the rows are stored. fused: in GPU memory; fused_uvm: in host memory; "
        "fused_uvm_caching: in host memory, and the rows in use also in a cache on the GPU",
    )
    ranks: int | None = Field(None, gt=0, description="number of ranks that hold a part of the table")
    dtype: Dtype | None = Field(None, description="type of the weights; default: tables.dtype")
    collision: Literal["hash", "managed"] = Field(
        "hash",
        description="hash: ids with equal hashes share a row; managed: each frequent id has a separate row, see "
        "tables.managed",
    )

    @model_validator(mode="after")
    def _managed_is_row_wise(self) -> Self:
        conflicts = {
            "sharding": self.sharding not in ((), ("row_wise",)),
            "kernel": self.kernel not in (None, "fused"),
            "ranks": self.ranks is not None,
        }
        for name, conflict in conflicts.items():
            if self.collision == "managed" and conflict:
                raise ValueError(
                    f"{name}: not allowed with collision: managed, which always uses sharding row_wise, kernel fused "
                    "and all ranks; remove this setting"
                )
        return self


class TablesConfig(Config):
    """The `tables:` section of the job file.

    >>> TablesConfig(embedding_dim=32, per_table={"user": TableConfig(sharding="row_wise")}).for_table("user").sharding
    ('row_wise',)
    """

    embedding_dim: int = Field(
        16, gt=0, lt=MAX_EMBEDDING_DIM, multiple_of=4, description="width of the embedding of a field"
    )
    init_std: float = Field(0.05, gt=0, description="standard deviation of the initial weights")
    optimizer: OptimizerConfig = Field(AdagradConfig(), description="updates the tables in the backward pass")
    dtype: Dtype = Field("fp32", description="type of the weights; the optimizer's state is always fp32")
    kernels: tuple[Kernel, ...] = Field(
        ("fused",), min_length=1, description="kernels that the planner may choose on GPUs; see `kernel` of per_table"
    )
    numeric_bins: int = Field(
        64,
        ge=0,
        le=MAX_KNOTS,
        description="maximum number of bins of a numeric field's piecewise-linear curve; quantiles of the training "
        "data bound the bins; 0: a straight line",
    )
    communication: Dtype = Field(
        "fp32",
        description="type of the embeddings that ranks exchange; with fp16, their gradients are sent as bf16 on GPUs "
        "and as fp16 on CPUs",
    )
    per_table: dict[str, TableConfig] = Field({}, description="settings of single tables, by table name")
    managed: ManagedConfig = Field(ManagedConfig(), description="settings of all tables with `collision: managed`")

    def width(self, owner: Table | FieldConfig) -> int:
        """Return the embedding_dim of a table or of a field; `embedding_dim` of this section if it has none."""
        return owner.embedding_dim or self.embedding_dim

    @property
    def splits_columns(self) -> bool:
        """Whether a plan may split the columns of a table.

        With rowwise_adagrad it must not: each split would keep a separate state, so losses would depend on the plan,
        and a checkpoint would load under the same plan only.
        """
        return self.optimizer.name != "rowwise_adagrad"

    @model_validator(mode="after")
    def _splits_are_allowed(self) -> Self:
        for name, table in self.per_table.items():
            splits = [kind for kind in table.sharding if kind in COLUMN_SPLITS]
            if splits and not self.splits_columns:
                raise ValueError(
                    f"per_table.{name}.sharding: {splits[0]} splits columns, so the state of rowwise_adagrad "
                    "cannot be resharded; use table_wise, row_wise, table_row_wise or data_parallel, or the optimizer "
                    "adagrad"
                )
        return self

    @property
    def managed_tables(self) -> list[str]:
        """The names of the tables with `collision: managed`, sorted."""
        return sorted(name for name, table in self.per_table.items() if table.collision == "managed")

    def for_table(self, table: str) -> TableConfig:
        """Return the settings of one table."""
        return self.per_table.get(table, TableConfig())

    def without_placement(self) -> TablesConfig:
        """Return the settings without sharding, kernels and ranks, so that any host can hold the tables."""
        anywhere = {"sharding": (), "kernel": None, "ranks": None}
        per_table = {name: table.model_copy(update=anywhere) for name, table in self.per_table.items()}
        return self.model_copy(update={"per_table": per_table, "kernels": ("fused",)})
