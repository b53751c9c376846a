"""Sets of embedding tables for measurements of sharding planners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torchrec.optim
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.torchrec_compat import table_name

RESERVED = 12e9
"""Memory of each rank that tables must not use, in bytes"""
KINDS = ("data_parallel", "table_wise", "row_wise", "table_row_wise", "column_wise", "grid_shard")


@dataclass(frozen=True)
class TableSet:
    """A set of tables, each for one field.

    rows: num_embeddings of each table; dims: embedding_dim of each table; pooling: mean number of ids per sample.
    """

    name: str
    rows: Sequence[int]
    dims: Sequence[int]
    pooling: Sequence[float]

    def model(self) -> nn.Module:
        """Return a model with the tables in fp16 on the meta device, with Adagrad as optimizer."""
        configs = [
            EmbeddingBagConfig(
                name=f"t{number}", feature_names=[f"f{number}"], num_embeddings=rows, embedding_dim=dim,
                data_type=DataType.FP16,
            )
            for number, (rows, dim) in enumerate(zip(self.rows, self.dims, strict=True))
        ]  # fmt: skip
        model = nn.Module()
        model.tables = EmbeddingBagCollection(configs, device=torch.device("meta"))
        _apply_optimizer_in_backward(torchrec.optim.Adagrad, model.parameters(), {"lr": 0.01})
        return model

    def planned(self, model: nn.Module) -> list[PlannedTable]:
        """Return the tables of `model` in the form that planners read."""
        weights = {table_name(name): weight for name, weight in model.named_parameters()}
        return [
            PlannedTable(f"t{number}", weights[f"t{number}"], [mean], KINDS) for number, mean in enumerate(self.pooling)
        ]


CRITEO_ROWS = (
    45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10, 2209, 11267, 128, 4, 974, 14,
    48937457, 11316796, 40094537, 452104, 12606, 104, 35,
)  # fmt: skip
"""Number of distinct ids in each of the 26 categorical columns of the Criteo 1TB click log"""
DCN_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209, 11938, 155, 4, 976, 14,
    40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip
DCN_POOLING = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Ids per sample and table in MLPerf's DLRM-DCNv2 benchmark, which has multi-hot inputs"""


def criteo() -> TableSet:
    """Return the tables for the Criteo 1TB click log, with one id per sample."""
    return TableSet("Criteo 1TB, one-hot", CRITEO_ROWS, [128] * 26, [1.0] * 26)


def dcn() -> TableSet:
    """Return the tables of MLPerf's DLRM-DCNv2 benchmark."""
    return TableSet("DLRM-DCNv2, multi-hot", DCN_ROWS, [128] * 26, [float(length) for length in DCN_POOLING])


def power_law(tables: int, terabytes: float, exponent: float, seed: int) -> TableSet:
    """Return random tables; the size of the k-th largest table is proportional to k ** -exponent.

    terabytes: size of all fp16 weights together, in units of 10^12 bytes.
    """
    rng = np.random.default_rng(seed)
    dims = rng.choice([64, 128, 256], tables, p=[0.3, 0.5, 0.2])
    sizes = np.arange(1, tables + 1) ** -exponent
    rows = np.maximum(10, sizes / sizes.sum() * terabytes * 1e12 / (2 * dims)).astype(np.int64)
    pooling = np.clip(np.round(rng.lognormal(1.0, 1.2, tables)), 1, 200)
    order = rng.permutation(tables)
    name = f"{tables} tables, {terabytes:g} TB"
    return TableSet(name, rows[order].tolist(), dims[order].tolist(), pooling[order].tolist())


def ten_sets() -> list[TableSet]:
    """Return two published sets of tables and eight random sets."""
    shapes = (
        (26, 1, 1.0, 5), (50, 1, 0.8, 1), (100, 1, 1.0, 0), (100, 1, 1.5, 6), (200, 1, 1.2, 2), (300, 1, 0.6, 3),
        (500, 1, 1.0, 4), (1000, 1, 1.0, 7),
    )  # fmt: skip
    return [criteo(), dcn(), *(power_law(*shape) for shape in shapes)]
