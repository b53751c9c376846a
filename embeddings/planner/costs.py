"""What each way to shard a table costs by TorchRec's own estimators, asked for all tables at once."""

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
from asymdiffrec.embeddings.planner.packing import EVERY, MACHINES, ONE_MACHINE, RANKS, Costs
from asymdiffrec.embeddings.planner.planned_tables import PlannedTable
from asymdiffrec.embeddings.planner.sharding_options import Way

LAUNCH = 0.005
"""Milliseconds that a shard costs whatever its size: its place in kernels and collectives. TorchRec counts none, and
then splits tables too finely."""

PLACES = {
    "data_parallel": EVERY,
    "row_wise": EVERY,
    "table_row_wise": MACHINES,
    "grid_shard": MACHINES,
    "table_wise": RANKS,
    "column_wise": RANKS,
    "table_column_wise": ONE_MACHINE,
}


def costs(
    tables: Sequence[PlannedTable],
    options: Sequence[Way],
    topology: Topology,
    batch_size: int,
    sharder: SharderData,
) -> Costs:
    """What each way costs each table, on ranks that take `batch_size` samples each."""
    shape = len(options), len(tables)
    time, memory, host = np.full(shape, np.inf), np.zeros(shape), np.zeros(shape)
    on_cpu = topology.compute_device == "cpu"
    for number, way in enumerate(options):
        able = [place for place, table in enumerate(tables) if way.is_open(table, topology)]
        for group in _alike(tables, able):
            context = _context([tables[place] for place in group], way, topology, batch_size, sharder)
            time[number, group] = _milliseconds(context) + LAUNCH
        for place in able:
            storage = _storage(tables[place], way, topology, batch_size, sharder)
            memory[number, place] = storage[1] if on_cpu else storage[0]
            host[number, place] = 0 if on_cpu else storage[1]
    shards = np.array([[way.shards(topology)] * len(tables) for way in options]).reshape(shape)
    return Costs(time, memory, host, shards, np.array([PLACES[way.sharding] for way in options]))


def _alike(tables: Sequence[PlannedTable], places: list[int]) -> list[list[int]]:
    """Tables that one question answers: TorchRec branches by dimension, by weights, and by whether caching is known."""
    groups: dict[Any, list[int]] = {}
    for place in places:
        table = tables[place]
        groups.setdefault((table.dim, table.weighted, table.cache is None), []).append(place)
    return list(groups.values())


class _Vector(np.ndarray):
    """Numbers for many tables, which `math.ceil` rounds one by one."""

    def __ceil__(self) -> np.ndarray:
        return np.ceil(self)

    def __float__(self) -> float:
        return math.nan  # TorchRec asks for one number where it then does not use it


def _vector(values: Sequence[float]) -> Any:
    return np.array(values, dtype=np.float64).view(_Vector)


@dataclass
class _Tables(ShardPerfContext):
    """TorchRec's context of a shard, for the largest shards of many tables."""

    lookups: Any = 0.0
    outputs: Any = 0.0

    @property
    def batch_inputs(self) -> Any:
        return self.lookups

    @property
    def batch_outputs(self) -> Any:
        return self.outputs


def _context(
    tables: Sequence[PlannedTable], way: Way, topology: Topology, batch_size: int, sharder: SharderData
) -> _Tables:
    config = EmbeddingPerfEstimatorConfig()
    bandwidth = config.get_device_bw(
        topology.compute_device, way.kernel, topology.hbm_mem_bw, topology.ddr_mem_bw, topology.ssd_mem_bw,
        topology.hbm_to_ddr_mem_bw, way.cached, tables[0].cache is not None,
    )  # fmt: skip
    sizes = _vector([table.weight.element_size() for table in tables])
    first, scatter = (
        sharder.qcomm_dtype_sizes.get(name, (sizes, sizes))
        for name in ("POOLED_EMBEDDINGS_ALL_TO_ALL", "POOLED_EMBEDDINGS_REDUCE_SCATTER")
    )
    caches = [table.cache for table in tables]
    cached = way.cached if way.kernel == "fused_uvm_caching" and None not in caches else None
    return _Tables(
        sharding_type=way.sharding,
        compute_kernel=way.kernel,
        hash_size=_vector([math.ceil(table.rows / way.row_parts(topology)) for table in tables]),
        emb_dim=tables[0].dim // way.columns,
        world_size=topology.world_size,
        local_world_size=topology.local_world_size,
        intra_group_size=topology.intra_group_size,
        table_data_type_size=sizes,
        output_data_type_size=sizes,
        fwd_a2a_comm_data_type_size=first[0],
        bwd_a2a_comm_data_type_size=first[1],
        fwd_sr_comm_data_type_size=scatter[0],
        bwd_sr_comm_data_type_size=scatter[1],
        device_bw=bandwidth,
        hbm_to_ddr_mem_bw=topology.hbm_to_ddr_mem_bw,
        comms_bandwidths=topology.comms_bandwidths,
        is_weighted=tables[0].weighted,
        bwd_compute_multiplier=topology.bwd_compute_multiplier,
        weighted_feature_bwd_compute_multiplier=topology.weighted_feature_bwd_compute_multiplier,
        caching_ratio=cached,
        cache_stats_expected_lookups=_vector([cache.expected_lookups for cache in caches if cache]) if cached else None,
        expected_miss_rate=_vector([c.expected_miss_rate(cached) for c in caches if c]) if cached else None,
        lookups=_vector([batch_size * sum(table.pooling) for table in tables]),
        outputs=_vector([batch_size * sum(min(1.0, length) for length in table.pooling) for table in tables]),
    )


def _milliseconds(context: _Tables) -> np.ndarray:
    """Forward, backward, communication and cache fetches of each table's largest shard."""
    evaluator = get_embedding_perf_sharding_evaluator(sharding_type=context.sharding_type, is_inference=False)
    return np.asarray(evaluator.compute_perf(ctx=context, config=EmbeddingPerfEstimatorConfig()).total)


def _storage(
    table: PlannedTable, way: Way, topology: Topology, batch_size: int, sharder: SharderData
) -> tuple[int, int]:
    """Bytes of a table's largest shard on the device and in the machine's memory, with its optimizer's state."""
    size = [math.ceil(table.rows / way.row_parts(topology)), table.dim // way.columns]
    (storage,) = calculate_shard_storages(
        sharder_data=sharder,
        sharding_type=way.sharding,
        tensor=table.weight,
        compute_device=topology.compute_device,
        compute_kernel=way.kernel,
        shard_sizes=[size],
        batch_sizes=[batch_size] * len(table.pooling),
        world_size=topology.world_size,
        local_world_size=topology.intra_group_size,
        input_lengths=list(table.pooling),
        num_poolings=[1.0] * len(table.pooling),
        caching_ratio=way.cached or 0.2,
        is_pooled=True,
        input_data_type_size=8,
        output_data_type_size=table.weight.element_size(),
    )
    more = bytes_beyond_estimate(table.weight, size, topology.compute_device, way.kernel)
    return storage.hbm + more.hbm, storage.ddr + more.ddr
