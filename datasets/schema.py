"""What a sample consists of: the fields of the job file, and what was learned from the data about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Self

import xxhash
from pydantic import Field, model_validator

from asymdiffrec.base import Config
from asymdiffrec.datasets.statistics.statistics import NumericStatistics, Statistics
from asymdiffrec.datasets.statistics.vocabulary import Vocabulary


class FieldConfig(Config):
    column: str | None = Field(None, description="Parquet column; the field's own name when left out")
    group: str = Field("default", description="fields that come from one place and can go missing together")
    drop: float = Field(1.0, ge=0, description="factor on the probability that the forward process drops the field")
    embedding_dim: int | None = Field(
        None, gt=0, description="columns of the field's embedding; `tables.embedding_dim` when left out"
    )


class SparseFieldConfig(FieldConfig):
    num_embeddings: int = Field(gt=0, description="rows of the embedding table")
    values: Literal["int", "string"] = Field(
        "int", description="what an id is; the other kind is converted when that loses nothing"
    )
    hash: bool = Field(True, description="hash ids into the rows; false: ids are rows already, in [0, rows)")
    table: str | None = Field(None, description="table that several fields share; the field's own name when left out")
    min_count: int = Field(
        1, gt=0, description="ids that are in fewer training rows, and ids never seen there, count as one id"
    )


class IdConfig(SparseFieldConfig):
    type: Literal["id"]


class IdListConfig(SparseFieldConfig):
    type: Literal["id_list"]
    pooling: Literal["mean", "sum"] = Field("mean", description="how the list's embeddings become one")
    weights: str | None = Field(
        None, description="column with a list of numbers, one for each id, that weigh the ids in the pooling"
    )
    expected_length: float | None = Field(
        None, gt=0, description="mean number of ids of a sample, for `plan` where there are no data yet"
    )


class NumericFieldConfig(FieldConfig):
    type: Literal["number"]
    transform: Literal["standardise", "log1p", "log_squared"] = Field(
        "standardise",
        description="what is done to the number before it is standardised: nothing; sign(x) log(1 + |x|); or, as is "
        "the custom with Criteo's logs, log(x)^2 where x > 2",
    )


AnyField = Annotated[IdConfig | IdListConfig | NumericFieldConfig, Field(discriminator="type")]


class DataConfig(Config):
    path: str = Field(
        ".", description="folder or URI with train/, valid/, test/ and statistics.yaml; relative to the job file"
    )
    label: str = Field("label", description="column with 0 or 1")
    user: str | None = Field(None, description="column that GAUC groups by")
    weight: str | None = Field(None, description="column with the sample's weight, in the loss and in every metric")
    time: str | None = Field(None, description="column with the sample's time, never fed to the model; has to be there")
    lanes: int = Field(
        32,
        gt=0,
        description="intervals an epoch is cut into, each with a row group in memory; workers must divide them",
    )
    window: int = Field(4096, gt=0, description="rows of a lane that are permuted together")
    cache: float = Field(
        1.0, ge=0, description="GiB of decoded row groups that a worker keeps beyond those that its lanes are in"
    )
    threads: int | None = Field(
        None, gt=0, description="threads that a worker reads with; its share of the machine's cores when left out"
    )


@dataclass(frozen=True)
class Schema:
    """The fields in the order that the whole system uses, with the columns that are not fields.

    The order is that of the model's columns: ids grouped by table, the tables as the job file first names them, then
    numbers. `missing`, the step vector and the random numbers of the forward process all count fields in this order.
    """

    fields: Mapping[str, IdConfig | IdListConfig | NumericFieldConfig]
    data: DataConfig
    statistics: Statistics | None = None
    id_ranges: Mapping[str, int] | None = None
    """How many values the ids of a table are hashed to, by its name, where these are not its rows"""

    @property
    def names(self) -> list[str]:
        return list(self.fields)

    @cached_property
    def sparse(self) -> dict[str, IdConfig | IdListConfig]:
        """The id and id_list fields: the keys of a batch's KeyedJaggedTensor."""
        return {name: field for name, field in self.fields.items() if not isinstance(field, NumericFieldConfig)}

    @cached_property
    def numbers(self) -> dict[str, NumericFieldConfig]:
        return {name: field for name, field in self.fields.items() if isinstance(field, NumericFieldConfig)}

    def id_range(self, name: str) -> int:
        """The ids of a field, as a batch has them, are in [0, id_range)."""
        return (self.id_ranges or {}).get(self.table(name), self.sparse[name].num_embeddings)

    def column(self, name: str) -> str:
        return self.fields[name].column or name

    def columns(self, labelled: bool) -> list[str]:
        """The columns that samples are decoded from; `labelled` adds label, weight and user."""
        names = [self.column(name) for name in self.names]
        names += [field.weights for field in self.fields.values() if isinstance(field, IdListConfig) and field.weights]
        if labelled:
            names += [name for name in (self.data.label, self.data.weight, self.data.user) if name]
        return list(dict.fromkeys(names))

    def table(self, name: str) -> str:
        return self.sparse[name].table or name

    @property
    def weighted(self) -> bool:
        """Whether ids come with weights: if one field's do, the look-up takes one for each id of every field."""
        return any(isinstance(field, IdListConfig) and field.weights for field in self.fields.values())

    def vocabulary(self, name: str) -> Vocabulary | None:
        """The ids of a field that count as themselves; None where all do."""
        return self.statistics.vocabularies.get(name) if self.statistics else None

    def numeric_statistics(self, name: str) -> NumericStatistics:
        """How to standardise a number field; the identity where nothing was learned."""
        found = self.statistics.numeric.get(name) if self.statistics else None
        return found or NumericStatistics()


class FieldsConfig(Config):
    """The `data:` and `fields:` sections together, checked against each other."""

    data: DataConfig = DataConfig()
    fields: dict[str, AnyField] = Field(min_length=1)

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        tables = self._by_table()
        if not tables:
            raise ValueError("no field of type id or id_list; a model needs at least one")
        for table, members in tables.items():
            (owner, first), *others = members.items()
            for name, field in others:
                for key in ("num_embeddings", "values", "hash", "embedding_dim"):
                    if getattr(first, key) != getattr(field, key):
                        raise ValueError(
                            f"fields {owner} and {name} share the table {table} but have "
                            f"{key} {getattr(first, key)} and {getattr(field, key)}; they must be equal"
                        )
        for name, sparse in ((name, field) for members in tables.values() for name, field in members.items()):
            if sparse.min_count > 1 and not sparse.hash:
                raise ValueError(f"fields.{name}: min_count needs hash: true, for rare ids become an id of their own")
        return self

    def _by_table(self) -> dict[str, dict[str, IdConfig | IdListConfig]]:
        """The id and id_list fields of each table, tables and fields in the order of the job file."""
        tables: dict[str, dict[str, IdConfig | IdListConfig]] = {}
        for name, field in self.fields.items():
            if not isinstance(field, NumericFieldConfig):
                tables.setdefault(field.table or name, {})[name] = field
        return tables

    def to_schema(self, statistics: Statistics | None = None) -> Schema:
        """The fields in the order of `Schema`, with what was learned from the data where it is known."""
        sparse = [name for members in self._by_table().values() for name in members]
        numbers = [name for name in self.fields if name not in sparse]
        return Schema({name: self.fields[name] for name in sparse + numbers}, self.data, statistics)


def table_seed(table: str) -> int:
    """64-bit seed of a table's hash: XXH3 of its name, so that its fields agree and other tables collide elsewhere."""
    return xxhash.xxh3_64_intdigest(table.encode())
