"""The tables of a job as a planner sees them: their sizes, how they are looked up, and what the job allows."""

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
from asymdiffrec.embeddings.managed.ids import WAYS
from asymdiffrec.embeddings.torchrec_compat import table_name


@dataclass(frozen=True)
class PlannedTable:
    """A table as a planner sees it."""

    name: str
    weight: nn.Parameter
    """[rows, dim], on the meta device, marked with its optimizer"""
    pooling: Sequence[float]
    """Mean number of ids of each field that shares the table"""
    sharding: Sequence[str]
    """Sharding types that it may have"""
    kernels: Sequence[str] = ("fused",)
    """Kernels that it may have where it is not data-parallel"""
    parts: int | None = None
    """How many ranks its shards are to be on"""
    split: bool = False
    """Whether it is asked to be split in columns, however narrow"""
    weighted: bool = False
    """Whether its ids come with weights"""
    cache: CacheStatistics | None = None
    """How well its rows can be cached; unknown where there was no data"""
    block: int = 1
    """Rows that stay together: a part has a multiple of these"""

    @property
    def rows(self) -> int:
        return int(self.weight.shape[0])

    @property
    def dim(self) -> int:
        return int(self.weight.shape[1])


class Reuse(CacheStatistics):
    """How well a table's rows can be cached, from how often the ids of its fields come in `samples` samples of a step.

    A cache that holds a share of the rows is taken to hold those that are looked up the most.
    """

    def __init__(self, fields: Iterable[Lookups], rows: int, samples: int) -> None:
        self._fields, self._rows, self._samples = list(fields), rows, samples

    @cached_property
    def _per_sample(self) -> float:
        return sum(field.per_sample for field in self._fields)

    @cached_property
    def _together(self) -> Lookups:
        """The fields' ids as if they were of one field: look-ups counted in proportion to how often a field has one."""
        repeats: list[tuple[float, float]] = []
        for field in self._fields:
            total = sum(count * ids for count, ids in field.repeats) or 1.0
            repeats += [(count * field.per_sample / total, ids) for count, ids in field.repeats]
        return Lookups(per_sample=self._per_sample, repeats=repeats)

    @cached_property
    def expected_lookups(self) -> float:
        """Distinct rows of a step, at most those that there are"""
        return min(self._rows, self._together.expected_distinct(self._samples * self._per_sample))

    def expected_miss_rate(self, clf: float) -> float:
        """Share of a step's distinct rows that are not in a cache of `clf` of the table."""
        drawn = self._samples * self._per_sample
        cold = self._together.expected_distinct(drawn, without=clf * self._rows)
        return min(1.0, cold / max(self.expected_lookups, 1e-9))

    @property
    def cacheability(self) -> float:
        """The misses of a cache of a tenth of the rows"""
        return self.expected_miss_rate(0.1)


def pooling_factors(schema: Schema, fields: Iterable[str]) -> list[float]:
    """Mean number of ids of a sample in each field: of the data, or else what the job says, or else 1."""
    statistics = schema.statistics.lookups if schema.statistics else {}
    factors = []
    for name in fields:
        field = schema.sparse[name]
        expected = field.expected_length if isinstance(field, IdListConfig) else None
        factors.append(statistics[name].per_sample if name in statistics else expected or 1.0)
    return factors


def reuse(schema: Schema, fields: Sequence[str], rows: int, samples: int) -> Reuse | None:
    """How often rows of a table come again in a step of `samples`; None where there was no data."""
    statistics = schema.statistics.lookups if schema.statistics else {}
    if not all(name in statistics for name in fields):
        return None
    return Reuse([statistics[name] for name in fields], rows, samples)


def table_configs(model: nn.Module) -> dict[str, EmbeddingBagConfig]:
    """The tables of a model that is not sharded yet, by name."""
    collections = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
    return {table.name: table for collection in collections for table in collection.embedding_bag_configs()}


def planned_tables(
    model: nn.Module, schema: Schema, config: TablesConfig, device: str, samples: int, kinds: Sequence[str]
) -> list[PlannedTable]:
    """The tables of `model` with what the job allows of the sharding types `kinds`, for steps of `samples` samples.

    Raises InputError where a table asks for a kernel that the device does not have.
    """
    weights = {table_name(name): weight for name, weight in model.named_parameters() if weight.is_meta}
    return [
        _planned(table, weights[name], schema, config, device, samples, kinds)
        for name, table in table_configs(model).items()
    ]


def _planned(
    table: EmbeddingBagConfig,
    weight: nn.Parameter,
    schema: Schema,
    config: TablesConfig,
    device: str,
    samples: int,
    kinds: Sequence[str],
) -> PlannedTable:
    asked = config.for_table(table.name)
    managed = asked.collision == "managed"
    kernels = [asked.kernel] if asked.kernel else ["fused"] if managed else list(config.kernels)
    if device == "cpu" and kernels != ["fused"]:
        where = f"per_table.{table.name}.kernel" if asked.kernel else "kernels"
        raise InputError(f"tables.{where}: {', '.join(kernels)} is for GPUs; on cpu there is fused alone")
    return PlannedTable(
        table.name,
        weight,
        pooling_factors(schema, table.feature_names),
        asked.sharding or (["row_wise"] if managed else kinds),
        kernels,
        asked.ranks,
        split=any(kind in COLUMN_SPLITS for kind in asked.sharding),
        weighted=schema.weighted,
        cache=reuse(schema, table.feature_names, table.num_embeddings, samples),
        block=WAYS if managed else 1,
    )
