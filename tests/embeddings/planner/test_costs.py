"""Costs computed for many tables at once equal the estimates of TorchRec's enumerator, made one by one."""

import numpy as np
import pytest
import torch
import torchrec.optim
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ShardingOption, Topology
from torchrec.distributed.planner.utils import build_sharder_data
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.planner.costs import RANKS_OF_SHARDS, SHARD_LAUNCH_MILLISECONDS, table_costs
from asymdiffrec.embeddings.planner.devices import Cluster, find_device
from asymdiffrec.embeddings.planner.estimators import estimators
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.search_planner import _constraints
from asymdiffrec.embeddings.planner.sharding_choices import ShardingChoice, sharding_choices
from asymdiffrec.embeddings.sharder import TableSharder

SIZES = [(100_000, 128, [3.5]), (1000, 64, [1.0, 0.25]), (30_000_001, 256, [20.0]), (33, 32, [0.5])]
KERNELS = ("fused", "fused_uvm", "fused_uvm_caching")
BATCH = 96


class Skewed:
    """Cache statistics in which a quarter of the rows has nine in ten look-ups."""

    expected_lookups = 5000.0
    cacheability = 0.2

    def expected_miss_rate(self, clf: float) -> float:
        return float(max(0.0, 1 - clf) ** 8)


def tables(
    optimizer: type, dtype: DataType, weighted: bool, cache: Skewed | None
) -> tuple[nn.Module, list[PlannedTable]]:
    configs = [
        EmbeddingBagConfig(
            name=f"t{index}",
            num_embeddings=rows,
            embedding_dim=dim,
            feature_names=[f"t{index}_{feature}" for feature in range(len(pooling))],
            data_type=dtype,
        )
        for index, (rows, dim, pooling) in enumerate(SIZES)
    ]
    model = nn.Module()
    model.tables = EmbeddingBagCollection(configs, is_weighted=weighted, device=torch.device("meta"))
    _apply_optimizer_in_backward(optimizer, model.parameters(), {"lr": 0.1})
    weights = dict(model.tables.embedding_bags.named_parameters())
    return model, [
        PlannedTable(
            f"t{index}",
            weights[f"t{index}.weight"],
            pooling,
            list(RANKS_OF_SHARDS),
            KERNELS,
            is_weighted=weighted,
            cache_statistics=cache,
        )
        for index, (_, _, pooling) in enumerate(SIZES)
    ]


def enumerated(
    model: nn.Module, table: PlannedTable, choice: ShardingChoice, topology: Topology, sharder: TableSharder, ours: bool
) -> ShardingOption:
    constraints = {table.name: _constraints(table, choice)}
    enumerator = EmbeddingEnumerator(topology, BATCH, constraints, estimators(topology, constraints) if ours else None)
    (option,) = [option for option in enumerator.enumerate(model, [sharder]) if option.name == table.name]
    return option


class OneSharder(TableSharder):
    """A sharder that offers one table of a model, with every kernel."""

    def __init__(self, table: str) -> None:
        super().__init__(TablesConfig(), "cuda")
        self._table = table

    def shardable_parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in super().shardable_parameters(module).items() if name == self._table}

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return ["dense", *KERNELS]


@pytest.mark.parametrize("ours", [True, False], ids=["our estimators", "TorchRec's estimators"])
@pytest.mark.parametrize(
    ("device", "nodes", "dtype", "optimizer", "weighted", "cache"),
    [
        ("h100", 4, DataType.FP32, torchrec.optim.Adagrad, False, None),
        ("a100-40", 1, DataType.FP16, torchrec.optim.RowWiseAdagrad, True, Skewed()),
        ("l40", 2, DataType.FP32, torchrec.optim.Adam, False, Skewed()),
        ("cpu", 2, DataType.FP16, torchrec.optim.SGD, False, None),
    ],
)
def test_costs_equal_those_of_torchrec(device, nodes, dtype, optimizer, weighted, cache, ours) -> None:
    topology = Cluster(find_device(device), nodes, 4).topology(reserved=0)
    model, planned = tables(optimizer, dtype, weighted, cache)
    kernels = ("fused",) if device == "cpu" else KERNELS
    choices = sharding_choices(kernels)
    costs = table_costs(planned, choices, topology, BATCH, build_sharder_data(TableSharder(TablesConfig(), "cuda")))
    compared = 0
    for number, choice in enumerate(choices):
        for index, table in enumerate(planned):
            if not np.isfinite(costs.time[number, index]):
                continue
            option = enumerated(model, table, choice, topology, OneSharder(table.name), ours)
            assert len(option.shards) == costs.shards[number, index]
            slowest = max(shard.perf.total for shard in option.shards)
            assert costs.time[number, index] == pytest.approx(slowest + SHARD_LAUNCH_MILLISECONDS, rel=1e-12), (
                choice,
                table.name,
            )
            memory = max(shard.storage.ddr if device == "cpu" else shard.storage.hbm for shard in option.shards)
            if ours:
                assert costs.memory[number, index] == memory
                if device != "cpu":
                    assert costs.host_memory[number, index] == max(shard.storage.ddr for shard in option.shards)
            elif dtype == DataType.FP32:
                gradient = table.weight.nbytes if choice.compute_kernel == "dense" else 0
                assert costs.memory[number, index] == memory + gradient
            compared += 1
    assert compared > 20
