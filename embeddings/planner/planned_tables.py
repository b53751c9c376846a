"""The input of a planner: the tables of a job with their sizes, their look-ups, and the shardings that are allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torchrec.distributed.types import CacheStatistics
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import IdListConfig, Schema
from asymdiffrec.datasets.statistics.lookups import Lookups
from asymdiffrec.embeddings.config import COLUMN_SPLITS, TablesConfig
from asymdiffrec.embeddings.managed.ids import ROWS_PER_SET
from asymdiffrec.embeddings.torchrec_compat import table_name


@dataclass(frozen=True)
class PlannedTable:
    """A table with everything that a planner needs to know about it."""

    name: str
    weight: nn.Parameter
    """[num_embeddings, embedding_dim] on the meta device, marked with its optimizer"""
    pooling_factors: Sequence[float]
    """Mean number of ids per sample of each field that shares the table"""
    sharding_types: Sequence[str]
    """Allowed sharding types"""
    compute_kernels: Sequence[str] = ("fused",)
    """Allowed kernels if the table is not data-parallel"""
    num_ranks: int | None = None
    """Number of ranks that must hold the table's shards; None if any number is allowed"""
    allow_narrow_shards: bool = False
    """Whether shards may be narrower than MIN_SHARD_COLUMNS, because the job asks for a split in columns"""
    is_weighted: bool = False
    """Whether the ids have weights"""
    cache_statistics: CacheStatistics | None = None
    """How well the rows can be cached; None without statistics of the data"""
    rows_per_block: int = 1
    """Size of row blocks that must not be split: the number of rows of a shard is a multiple of it"""

    @property
    def num_embeddings(self) -> int:
        """Number of rows."""
        return int(self.weight.shape[0])

    @property
    def embedding_dim(self) -> int:
        """Width of a row."""
        return int(self.weight.shape[1])


class RowReuse(CacheStatistics):
    """Cache statistics of a table, computed from how often the ids of its fields occur in one step.

    `samples` is the number of samples in a step. A cache with room for a share of the rows is assumed to hold the rows
    that are looked up most often.
    """

    def __init__(self, fields: Iterable[Lookups], rows: int, samples: int) -> None:
        self._fields, self._rows, self._samples = list(fields), rows, samples

    @cached_property
    def _per_sample(self) -> float:
        return sum(field.per_sample for field in self._fields)

    @cached_property
    def _combined(self) -> Lookups:
        """The look-ups of all fields of the table, merged into one distribution.

        The counts of a field are normalised and multiplied by the field's mean number of ids per sample.
        """
        repeats: list[tuple[float, float]] = []
        for field in self._fields:
            total = sum(count * ids for count, ids in field.repeats) or 1.0
            repeats += [(count * field.per_sample / total, ids) for count, ids in field.repeats]
        return Lookups(per_sample=self._per_sample, repeats=repeats)

    @cached_property
    def expected_lookups(self) -> float:
        """Expected number of distinct rows in a step, at most the number of rows."""
        return min(self._rows, self._combined.expected_distinct(self._samples * self._per_sample))

    def expected_miss_rate(self, clf: float) -> float:
        """Return the miss rate of a cache with room for a share `clf` of the rows, over a step's distinct rows."""
        lookups = self._samples * self._per_sample
        misses = self._combined.expected_distinct(lookups, excluded=clf * self._rows)
        return min(1.0, misses / max(self.expected_lookups, 1e-9))

    @property
    def cacheability(self) -> float:
        """The miss rate of a cache with room for a tenth of the rows."""
        return self.expected_miss_rate(0.1)


def pooling_factors(schema: Schema, fields: Iterable[str]) -> list[float]:
    """Return the mean number of ids per sample for each field: from the statistics, else from the job, else 1."""
    statistics = schema.statistics.lookups if schema.statistics else {}
    factors = []
    for name in fields:
        field = schema.sparse[name]
        expected = field.expected_length if isinstance(field, IdListConfig) else None
        factors.append(statistics[name].per_sample if name in statistics else expected or 1.0)
    return factors


def row_reuse(schema: Schema, fields: Sequence[str], rows: int, samples: int) -> RowReuse | None:
    """Return the cache statistics of a table for steps of `samples` samples; None if a field has no statistics."""
    statistics = schema.statistics.lookups if schema.statistics else {}
    if not all(name in statistics for name in fields):
        return None
    return RowReuse([statistics[name] for name in fields], rows, samples)


def table_configs(model: nn.Module) -> dict[str, EmbeddingBagConfig]:
    """Return the tables of a model that is not sharded yet, by name."""
    collections = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
    return {table.name: table for collection in collections for table in collection.embedding_bag_configs()}


def planned_tables(
    model: nn.Module, schema: Schema, config: TablesConfig, device: str, samples: int, sharding_types: Sequence[str]
) -> list[PlannedTable]:
    """Return the tables of `model` for steps of `samples` samples.

    A table allows the sharding types and kernels that the job sets for it, by default all `sharding_types`. Raises
    InputError if the job sets a kernel that the device does not support.
    """
    weights = {table_name(key): weight for key, weight in model.named_parameters() if weight.is_meta}
    return [
        _planned_table(table, weights[name], schema, config, device, samples, sharding_types)
        for name, table in table_configs(model).items()
    ]


def _planned_table(
    table: EmbeddingBagConfig,
    weight: nn.Parameter,
    schema: Schema,
    config: TablesConfig,
    device: str,
    samples: int,
    sharding_types: Sequence[str],
) -> PlannedTable:
    settings = config.for_table(table.name)
    managed = settings.collision == "managed"
    kernels = [settings.kernel] if settings.kernel else ["fused"] if managed else list(config.kernels)
    if device == "cpu" and kernels != ["fused"]:
        path = f"per_table.{table.name}.kernel" if settings.kernel else "kernels"
        raise InputError(
            f"tables.{path}: found {', '.join(kernels)}; on cpu only fused is allowed, the other kernels need a GPU"
        )
    return PlannedTable(
        table.name,
        weight,
        pooling_factors(schema, table.feature_names),
        settings.sharding or (["row_wise"] if managed else sharding_types),
        kernels,
        settings.ranks,
        allow_narrow_shards=any(kind in COLUMN_SPLITS for kind in settings.sharding),
        is_weighted=schema.weighted,
        cache_statistics=row_reuse(schema, table.feature_names, table.num_embeddings, samples),
        rows_per_block=ROWS_PER_SET if managed else 1,
    )
