"""The schema: the fields of a sample, their types and order, and the embedding tables of the sparse fields."""

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
    """The settings that all field types share."""

    column: str | None = Field(None, description="Parquet column; default: the name of the field")
    group: str = Field("default", description="fields of a group come from one source and can be missing together")
    drop: float = Field(1.0, ge=0, description="factor for the probability that the forward process drops the field")
    embedding_dim: int | None = Field(
        None, gt=0, description="width of the field's embedding; default: `tables.embedding_dim`"
    )


class SparseFieldConfig(FieldConfig):
    """The settings that `id` and `id_list` fields share."""

    num_embeddings: int = Field(gt=0, description="rows of the embedding table")
    values: Literal["int", "string"] = Field(
        "int", description="type of the ids; a column of the other type is converted; int: text must be integers"
    )
    hash: bool = Field(
        True, description="hash ids to table rows; false: an id is a table row, from 0 to num_embeddings - 1"
    )
    table: str | None = Field(
        None, description="embedding table; fields with the same name share a table; default: the name of the field"
    )
    min_count: int = Field(
        1, gt=0, description="ids that occur in fewer training rows, or in no training row, count as one common id"
    )


class IdConfig(SparseFieldConfig):
    """A field with at most one id per sample."""

    type: Literal["id"]


class IdListConfig(SparseFieldConfig):
    """A field with a list of ids per sample; an empty list means that the field is missing."""

    type: Literal["id_list"]
    pooling: Literal["mean", "sum"] = Field("mean", description="how the embeddings of a list are combined")
    weights: str | None = Field(
        None, description="column with a list of numbers: the weight of each id of the list in the pooling"
    )
    expected_length: float | None = Field(
        None, gt=0, description="mean number of ids per sample, for `plan` without data"
    )


class NumericFieldConfig(FieldConfig):
    """A field with one number per sample."""

    type: Literal["number"]
    transform: Literal["standardise", "log1p", "log_squared"] = Field(
        "standardise",
        description="function applied before the number is standardised. standardise: no function; log1p: "
        "sign(x) log(1 + |x|); log_squared: log(x)^2 if x > 2, else x, as is usual for the Criteo logs",
    )


AnyField = Annotated[IdConfig | IdListConfig | NumericFieldConfig, Field(discriminator="type")]


class DataConfig(Config):
    """The `data:` section of the job file."""

    path: str = Field(
        ".", description="folder or URI with train/, valid/, test/ and statistics.yaml; relative to the job file"
    )
    label: str = Field("label", description="column with 0 or 1")
    user: str | None = Field(None, description="user column; GAUC is computed per user")
    weight: str | None = Field(
        None, description="column with the weight of a sample in the loss and in all metrics; default: weight 1"
    )
    time: str | None = Field(
        None, description="column with the time of a sample; it must exist and is never an input of the model"
    )
    lanes: int = Field(
        32,
        gt=0,
        description="number of intervals that an epoch is cut into, a multiple of the number of workers; a lane keeps "
        "one row group in memory",
    )
    window: int = Field(4096, gt=0, description="rows of a lane that are shuffled together")
    threads: int | None = Field(
        None, gt=0, description="reader threads per worker; default: the cores of the host divided by its workers"
    )


@dataclass(frozen=True)
class Table:
    """An embedding table and the sparse fields whose ids it holds."""

    name: str
    num_embeddings: int
    embedding_dim: int | None
    """Width of the table's embeddings; None: `tables.embedding_dim` of the job."""
    values: Literal["int", "string"]
    hash: bool
    fields: tuple[str, ...]
    """Names of the fields that share the table."""
    id_range: int
    """Batches have ids in [0, id_range). It is equal to `num_embeddings`, except for managed tables."""

    @property
    def hash_seed(self) -> int:
        """The seed of the hash that maps ids to [0, id_range), see `table_seed`."""
        return table_seed(self.name)


@dataclass(frozen=True)
class Schema:
    """The fields in the order that the whole system uses, and the other columns of a sample.

    Sparse fields come first, grouped by table; tables are in the order in which the job file first names them. Numeric
    fields follow. `missing`, the mask and the random numbers of the forward process use the same order of fields.

    >>> fields = {"age": {"type": "number"}, "item": {"type": "id", "num_embeddings": 1000}}
    >>> schema = FieldsConfig.model_validate({"fields": fields}).to_schema()
    >>> schema.names, schema.tables["item"].num_embeddings
    (['item', 'age'], 1000)
    """

    fields: Mapping[str, IdConfig | IdListConfig | NumericFieldConfig]
    data: DataConfig
    statistics: Statistics | None = None
    id_ranges: Mapping[str, int] | None = None
    """The `Table.id_range` of each managed table, by table name."""

    @property
    def names(self) -> list[str]:
        """The names of all fields, in order."""
        return list(self.fields)

    @cached_property
    def sparse(self) -> dict[str, IdConfig | IdListConfig]:
        """The id and id_list fields: the keys of a batch's KeyedJaggedTensor."""
        return {name: field for name, field in self.fields.items() if not isinstance(field, NumericFieldConfig)}

    @cached_property
    def numeric(self) -> dict[str, NumericFieldConfig]:
        """The fields of type number."""
        return {name: field for name, field in self.fields.items() if isinstance(field, NumericFieldConfig)}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The embedding tables by name, in order."""
        return _tables(self.fields, self.id_ranges or {})

    @cached_property
    def _tables_by_field(self) -> dict[str, Table]:
        return {name: table for table in self.tables.values() for name in table.fields}

    def table_of(self, name: str) -> Table:
        """Return the table of a sparse field."""
        return self._tables_by_field[name]

    def column(self, name: str) -> str:
        """Return the Parquet column of a field."""
        return self.fields[name].column or name

    def columns(self, labelled: bool) -> list[str]:
        """Return the names of the columns that decoding needs; `labelled` adds label, weight and user."""
        names = [self.column(name) for name in self.names]
        names += [field.weights for field in self.fields.values() if isinstance(field, IdListConfig) and field.weights]
        if labelled:
            names += [name for name in (self.data.label, self.data.weight, self.data.user) if name]
        return list(dict.fromkeys(names))

    @property
    def weighted(self) -> bool:
        """Whether any field has weights. If so, the ids of every field have weights in the look-up."""
        return any(isinstance(field, IdListConfig) and field.weights for field in self.fields.values())

    def vocabulary(self, name: str) -> Vocabulary | None:
        """Return the frequent ids of a sparse field, or None if its rare ids are not merged into one id."""
        return self.statistics.vocabularies.get(name) if self.statistics else None

    def numeric_statistics(self, name: str) -> NumericStatistics:
        """Return the statistics of a numeric field; without statistics, mean 0 and standard deviation 1."""
        statistics = self.statistics.numeric.get(name) if self.statistics else None
        return statistics or NumericStatistics()


class FieldsConfig(Config):
    """The sections `data:` and `fields:` of the job file, checked against each other."""

    data: DataConfig = DataConfig()
    fields: dict[str, AnyField] = Field(min_length=1)

    @model_validator(mode="after")
    def _fields_of_a_table_agree(self) -> Self:
        tables = _tables(self.fields)
        if not tables:
            raise ValueError("no field of type id or id_list; a model needs at least one")
        for table in tables.values():
            first, *others = table.fields
            for name in others:
                for key in ("num_embeddings", "values", "hash", "embedding_dim"):
                    expected, value = getattr(table, key), getattr(self.fields[name], key)
                    if value != expected:
                        raise ValueError(
                            f"fields {first} and {name} share the table {table.name} but have {key} {expected} and "
                            f"{value}; they must be equal"
                        )
        for name, field in self.fields.items():
            if isinstance(field, SparseFieldConfig) and field.min_count > 1 and not field.hash:
                raise ValueError(f"fields.{name}: min_count needs hash: true, because it gives all rare ids one id")
        return self

    def to_schema(self, statistics: Statistics | None = None) -> Schema:
        """Return the schema; `statistics` are the statistics of the training rows."""
        sparse = [name for table in _tables(self.fields).values() for name in table.fields]
        numeric = [name for name in self.fields if name not in sparse]
        return Schema({name: self.fields[name] for name in sparse + numeric}, self.data, statistics)


def _tables(fields: Mapping[str, AnyField], id_ranges: Mapping[str, int] | None = None) -> dict[str, Table]:
    """Return the tables in the order in which fields first name them; a table has the settings of its first field."""
    members: dict[str, list[str]] = {}
    for name, field in fields.items():
        if isinstance(field, SparseFieldConfig):
            members.setdefault(field.table or name, []).append(name)
    tables = {}
    for table, names in members.items():
        first = fields[names[0]]
        assert isinstance(first, SparseFieldConfig)
        id_range = (id_ranges or {}).get(table, first.num_embeddings)
        tables[table] = Table(
            table, first.num_embeddings, first.embedding_dim, first.values, first.hash, tuple(names), id_range
        )
    return tables


def table_seed(table: str) -> int:
    """Return the 64-bit hash seed of a table: XXH3 of its name.

    So fields with the same table map equal ids to equal rows, and two tables have different collisions.
    """
    return xxhash.xxh3_64_intdigest(table.encode())
