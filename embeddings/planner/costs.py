"""Costs of every sharding choice for every table, from TorchRec's estimators, computed for many tables at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torchrec.distributed.planner.estimator.config import EmbeddingPerfEstimatorConfig
from torchrec.distributed.planner.estimator.estimator import get_embedding_perf_sharding_evaluator
from torchrec.distributed.planner.estimator.types import ShardPerfContext
from torchrec.distributed.planner.shard_estimators import calculate_shard_storages
from torchrec.distributed.planner.types import SharderData, Topology

from asymdiffrec.embeddings.planner.estimators import bytes_beyond_estimate
from asymdiffrec.embeddings.planner.packing import ANY_RANKS, EVERY_RANK, ONE_HOST, WHOLE_HOSTS, Costs
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.rank_memory import DEFAULT_CACHE_LOAD_FACTOR
from asymdiffrec.embeddings.planner.sharding_choices import ShardingChoice

SHARD_LAUNCH_MILLISECONDS = 0.005
"""Fixed time of a shard of any size: its part in the launches of kernels and collectives. TorchRec does not count this
time, and therefore splits tables too finely."""

INPUT_ID_BYTES = 8

RANKS_OF_SHARDS = {
    "data_parallel": EVERY_RANK,
    "row_wise": EVERY_RANK,
    "table_row_wise": WHOLE_HOSTS,
    "grid_shard": WHOLE_HOSTS,
    "table_wise": ANY_RANKS,
    "column_wise": ANY_RANKS,
    "table_column_wise": ONE_HOST,
}


def table_costs(
    tables: Sequence[PlannedTable],
    choices: Sequence[ShardingChoice],
    topology: Topology,
    batch_size: int,
    sharder: SharderData,
) -> Costs:
    """Return the costs of each choice for each table, on ranks with `batch_size` samples each."""
    shape = len(choices), len(tables)
    time, memory, host_memory = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
    on_cpu = topology.compute_device == "cpu"
    for number, choice in enumerate(choices):
        allowed = [index for index, table in enumerate(tables) if choice.is_allowed(table, topology)]
        for group in _groups(tables, allowed):
            context = _context([tables[index] for index in group], choice, topology, batch_size, sharder)
            time[number, group] = _milliseconds(context) + SHARD_LAUNCH_MILLISECONDS
        for index in allowed:
            hbm, ddr = _storage(tables[index], choice, topology, batch_size, sharder)
            memory[number, index] = ddr if on_cpu else hbm
            host_memory[number, index] = 0 if on_cpu else ddr
    shards = np.array([[choice.num_shards(topology)] * len(tables) for choice in choices]).reshape(shape)
    return Costs(
        time, memory, host_memory, shards, np.array([RANKS_OF_SHARDS[choice.sharding_type] for choice in choices])
    )


def _groups(tables: Sequence[PlannedTable], indices: list[int]) -> list[list[int]]:
    """Return groups of tables that one call of TorchRec can estimate.

    TorchRec's code branches on embedding_dim, on weighted ids and on cache statistics, so these are equal in a group.
    """
    groups: dict[Any, list[int]] = {}
    for index in indices:
        table = tables[index]
        key = (table.embedding_dim, table.is_weighted, table.cache_statistics is None)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


class _Vector(np.ndarray):
    """An array with one number for each table; `math.ceil` rounds each number."""

    def __ceil__(self) -> np.ndarray:
        return np.ceil(self)

    def __float__(self) -> float:
        return math.nan  # TorchRec converts one value to float, but does not use it


def _vector(values: Sequence[float]) -> Any:
    return np.array(values, dtype=np.float64).view(_Vector)


@dataclass
class _TablesContext(ShardPerfContext):
    """TorchRec's shard context for the largest shards of many tables at once."""

    lookups: Any = 0.0
    outputs: Any = 0.0

    @property
    def batch_inputs(self) -> Any:
        return self.lookups

    @property
    def batch_outputs(self) -> Any:
        return self.outputs


def _context(
    tables: Sequence[PlannedTable], choice: ShardingChoice, topology: Topology, batch_size: int, sharder: SharderData
) -> _TablesContext:
    config = EmbeddingPerfEstimatorConfig()
    load_factor = choice.cache_load_factor
    bandwidth = config.get_device_bw(
        topology.compute_device, choice.compute_kernel, topology.hbm_mem_bw, topology.ddr_mem_bw, topology.ssd_mem_bw,
        topology.hbm_to_ddr_mem_bw, load_factor, tables[0].cache_statistics is not None,
    )  # fmt: skip
    sizes = _vector([table.weight.element_size() for table in tables])
    all_to_all, reduce_scatter = (
        sharder.qcomm_dtype_sizes.get(name, (sizes, sizes))
        for name in ("POOLED_EMBEDDINGS_ALL_TO_ALL", "POOLED_EMBEDDINGS_REDUCE_SCATTER")
    )
    caches = [table.cache_statistics for table in tables]
    cached = load_factor if choice.compute_kernel == "fused_uvm_caching" and None not in caches else None
    return _TablesContext(
        sharding_type=choice.sharding_type,
        compute_kernel=choice.compute_kernel,
        hash_size=_vector([math.ceil(table.num_embeddings / choice.row_parts(topology)) for table in tables]),
        emb_dim=tables[0].embedding_dim // choice.column_parts,
        world_size=topology.world_size,
        local_world_size=topology.local_world_size,
        intra_group_size=topology.intra_group_size,
        table_data_type_size=sizes,
        output_data_type_size=sizes,
        fwd_a2a_comm_data_type_size=all_to_all[0],
        bwd_a2a_comm_data_type_size=all_to_all[1],
        fwd_sr_comm_data_type_size=reduce_scatter[0],
        bwd_sr_comm_data_type_size=reduce_scatter[1],
        device_bw=bandwidth,
        hbm_to_ddr_mem_bw=topology.hbm_to_ddr_mem_bw,
        comms_bandwidths=topology.comms_bandwidths,
        is_weighted=tables[0].is_weighted,
        bwd_compute_multiplier=topology.bwd_compute_multiplier,
        weighted_feature_bwd_compute_multiplier=topology.weighted_feature_bwd_compute_multiplier,
        caching_ratio=cached,
        cache_stats_expected_lookups=_vector([cache.expected_lookups for cache in caches if cache]) if cached else None,
        expected_miss_rate=_vector([c.expected_miss_rate(cached) for c in caches if c]) if cached else None,
        lookups=_vector([batch_size * sum(table.pooling_factors) for table in tables]),
        outputs=_vector([batch_size * sum(min(1.0, length) for length in table.pooling_factors) for table in tables]),
    )


def _milliseconds(context: _TablesContext) -> np.ndarray:
    """Return the milliseconds of each table's largest shard: forward, backward, communication and cache fetches."""
    evaluator = get_embedding_perf_sharding_evaluator(sharding_type=context.sharding_type, is_inference=False)
    return np.asarray(evaluator.compute_perf(ctx=context, config=EmbeddingPerfEstimatorConfig()).total)


def _storage(
    table: PlannedTable, choice: ShardingChoice, topology: Topology, batch_size: int, sharder: SharderData
) -> tuple[int, int]:
    """Return the bytes of a table's largest shard in HBM and in host memory, with the optimizer state."""
    rows = math.ceil(table.num_embeddings / choice.row_parts(topology))
    size = [rows, table.embedding_dim // choice.column_parts]
    (storage,) = calculate_shard_storages(
        sharder_data=sharder,
        sharding_type=choice.sharding_type,
        tensor=table.weight,
        compute_device=topology.compute_device,
        compute_kernel=choice.compute_kernel,
        shard_sizes=[size],
        batch_sizes=[batch_size] * len(table.pooling_factors),
        world_size=topology.world_size,
        local_world_size=topology.intra_group_size,
        input_lengths=list(table.pooling_factors),
        num_poolings=[1.0] * len(table.pooling_factors),
        caching_ratio=choice.cache_load_factor or DEFAULT_CACHE_LOAD_FACTOR,
        is_pooled=True,
        input_data_type_size=INPUT_ID_BYTES,
        output_data_type_size=table.weight.element_size(),
    )
    beyond = bytes_beyond_estimate(table.weight, size, topology.compute_device, choice.compute_kernel)
    return storage.hbm + beyond.hbm, storage.ddr + beyond.ddr
