"""The sharding plan: which rank holds which part of which table."""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    Storage,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from asymdiffrec.embeddings.optimizers import check_device
from asymdiffrec.embeddings.planner.fast import plan_fast
from asymdiffrec.embeddings.planner.search import TooLargeError
from asymdiffrec.embeddings.planner.ways import PlannedTable, ways
from asymdiffrec.embeddings.tables import COLUMN_SPLITS, TablesConfig

RESERVED = 0.15
"""Share of a rank's memory that tables may not take: activations, batches in flight, the allocator's loss."""

DENSE_COPIES = 6
"""What a dense parameter costs, in parameters: itself, its gradient, two moments, and buckets to reduce gradients."""


class TableSharder(EmbeddingBagCollectionSharder):
    """What a plan may choose from: all sharding types on every device, and tables that stay in the device's memory."""

    def __init__(self, splits_columns: bool) -> None:
        super().__init__()
        self._splits_columns = splits_columns

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types("cuda")  # TorchRec offers no row-wise choice for cpu, though it runs there
        return types if self._splits_columns else [kind for kind in types if kind not in COLUMN_SPLITS]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return super().compute_kernels(sharding_type, "cpu")  # without those of cuda that keep tables in host memory


def local_topology(device: str, world_size: int) -> Topology:
    """Ranks like this one: its device's memory (for `cpu` its share of the machine's), TorchRec's own bandwidths."""
    local = get_local_size(world_size)
    if device == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local
    else:
        memory = torch.cuda.get_device_properties(device).total_memory
    usable = int((1 - RESERVED) * memory)
    return TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=local),
        HardwareConfig(ddr_cap_bytes=usable) if device == "cpu" else HardwareConfig(hbm_cap_bytes=usable),
        KernelConfig(compute_device=device),
    )


def table_configs(model: nn.Module) -> dict[str, EmbeddingBagConfig]:
    """The tables of a model that is not sharded yet, by name."""
    collections = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
    return {table.name: table for collection in collections for table in collection.embedding_bag_configs()}


def plan_tables(model: nn.Module, config: TablesConfig, topology: Topology, batch_size: int) -> ShardingPlan:
    """A plan for the tables of `model` on the ranks of `topology`; needs no process group and no memory for the tables.

    `batch_size` is that of one rank. ValueError, in one line, where the tables do not fit, the device lacks the
    optimizer, or a sharding that the job fixes would leave ranks without rows.
    """
    check_device(config.optimizer, topology.compute_device)
    tables = table_configs(model)
    sharder = TableSharder(config.splits_columns)
    weights = {name: weight for name, weight in model.named_parameters() if weight.is_meta}
    planned = [_planned(table, _weight_of(weights, name), config, sharder, topology) for name, table in tables.items()]
    held = sum(weight.numel() for weight in model.parameters() if not weight.is_meta)
    root = logging.getLogger()
    root.addFilter(_worth_telling)
    try:
        plan, _ = plan_fast(model, planned, _without(topology, 4 * DENSE_COPIES * held), batch_size, sharder)
    except TooLargeError as error:
        raise ValueError(_too_large(tables, topology)) from error
    finally:
        root.removeFilter(_worth_telling)
    return plan


def _weight_of(weights: dict[str, nn.Parameter], table: str) -> nn.Parameter:
    (weight,) = [weight for name, weight in weights.items() if name.endswith(f"embedding_bags.{table}.weight")]
    return weight


def _without(topology: Topology, held: int) -> Topology:
    """The topology with so many bytes less on every rank: the dense part of the model is on each."""
    room = copy.deepcopy(topology)
    on_cpu = topology.compute_device == "cpu"
    for device in room.devices:
        device.storage -= Storage(hbm=0 if on_cpu else held, ddr=held if on_cpu else 0)
    return room


def _worth_telling(record: logging.LogRecord) -> bool:
    """Leaves out the planner's warning for every data-parallel table, which rightly has no sharding spec."""
    return not record.getMessage().startswith("Sharding spec not found")


def agreed_plan(
    model: nn.Module,
    config: TablesConfig,
    device: torch.device,
    batch_size: int,
    group: dist.ProcessGroup | None = None,
) -> ShardingPlan:
    """Rank 0's plan for ranks like itself, on every rank of `group` (all by default).

    A ValueError of `plan_tables` is raised on every rank too, so that none waits forever.
    """
    group = group or dist.distributed_c10d._get_default_group()
    outcome: list[ShardingPlan | str] = [""]
    if group.rank() == 0:
        try:
            outcome[0] = plan_tables(model, config, local_topology(device.type, group.size()), batch_size)
        except ValueError as error:
            outcome[0] = str(error)
    dist.broadcast_object_list(outcome, group=group, group_src=0)
    if isinstance(outcome[0], str):
        raise ValueError(outcome[0])
    return outcome[0]


def describe_plan(plan: ShardingPlan, model: nn.Module) -> list[dict[str, Any]]:
    """What `plan.json` keeps of a plan for `model`, which is not sharded yet; `ranks` are those that hold a part."""
    shardings = {name: sharding for module in plan.plan.values() for name, sharding in module.items()}
    return [
        {
            "name": name,
            "rows": table.num_embeddings,
            "dim": table.embedding_dim,
            "sharding": shardings[name].sharding_type,
            "kernel": shardings[name].compute_kernel,
            "ranks": sorted(set(shardings[name].ranks)),
        }
        for name, table in table_configs(model).items()
    ]


def _planned(
    table: EmbeddingBagConfig, weight: nn.Parameter, config: TablesConfig, sharder: TableSharder, topology: Topology
) -> PlannedTable:
    """What the planner may do with a table: what the job says, and no parts at all on a single rank."""
    asked = config.of(table.name)
    several = topology.world_size > topology.local_world_size
    useless = {"table_column_wise"} if several else {"table_column_wise", "grid_shard", "table_row_wise"}
    kinds = [kind for kind in sharder.sharding_types(topology.compute_device) if kind not in useless]
    if topology.world_size == 1:
        kinds = ["table_wise"]
    kernels = [asked.kernel] if asked.kernel else list(config.kernels)
    if topology.compute_device == "cpu" and kernels != ["fused"]:
        raise ValueError(f"tables.per_table.{table.name}.kernel: {kernels[0]} is for GPUs; on cpu there is fused alone")
    planned = PlannedTable(
        table.name,
        weight,
        [1.0] * len(table.feature_names),
        asked.sharding or kinds,
        kernels,
        asked.ranks,
        split=any(kind in COLUMN_SPLITS for kind in asked.sharding),
    )
    if not _has_way(planned, topology):
        free = [kind for kind in kinds if _has_way(replace(planned, sharding=[kind]), topology)]
        parts = f" on {asked.ranks} ranks" if asked.ranks else ""
        raise ValueError(
            f"tables.per_table.{table.name}: {' or '.join(asked.sharding or kinds)}{parts} cannot divide "
            f"{table.num_embeddings} rows of {table.embedding_dim} columns so that each of {topology.world_size} ranks "
            f"has a part; use {', '.join(free) or 'another number of ranks'}"
        )
    return planned


def _has_way(table: PlannedTable, topology: Topology) -> bool:
    return any(way.is_open(table, topology) for way in ways(table.kernels))


def _too_large(tables: dict[str, EmbeddingBagConfig], topology: Topology) -> str:
    sizes = {name: 4 * table.num_embeddings * table.embedding_dim / 2**30 for name, table in tables.items()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    shown = ", ".join(
        f"{name} ({tables[name].num_embeddings} x {tables[name].embedding_dim}, {sizes[name]:.3g} GiB)"
        for name in largest
    )
    storage = topology.devices[0].storage
    memory = (storage.ddr if topology.compute_device == "cpu" else storage.hbm) / 2**30
    return (
        f"tables: {sum(sizes.values()):.3g} GiB of weights and their optimizer state do not fit into {memory:.3g} GiB "
        f"on each of {topology.world_size} ranks as sharded; the largest are {shown}"
    )
