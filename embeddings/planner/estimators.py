"""TorchRec's estimators, with two changes: time is estimated once for equal shards, and no memory is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torchrec.distributed.planner.estimator.config import EmbeddingPerfEstimatorConfig
from torchrec.distributed.planner.estimator.estimator import (
    EmbeddingPerfEstimator,
    get_embedding_perf_sharding_evaluator,
)
from torchrec.distributed.planner.estimator.types import ShardPerfContext
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    Perf,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Storage,
    Topology,
)

from asymdiffrec.embeddings.torchrec_compat import optimizer_state_elements

STATE_ELEMENT_BYTES = 4
"""Bytes of one value of the optimizer's state: FBGEMM keeps it in fp32 for weights of any type."""


def estimators(topology: Topology, constraints: dict[str, ParameterConstraints]) -> list[ShardEstimator]:
    """Return the estimators of time and of memory for TorchRec's enumerators."""
    return [OncePerfEstimator(topology, constraints), StateStorageEstimator(topology, constraints)]


class OncePerfEstimator(EmbeddingPerfEstimator):
    """TorchRec's time estimator, called once per shard size of a table instead of once per shard.

    A table may have a thousand shards of the same size.
    """

    def __init__(self, topology: Topology, constraints: dict[str, ParameterConstraints]) -> None:
        super().__init__(topology, constraints, config=EmbeddingPerfEstimatorConfig())

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
        """Set the `perf` of every shard of the options."""
        for option in sharding_options:
            sizes = {tuple(shard.size) for shard in option.shards}
            contexts = ShardPerfContext.build_shard_perf_contexts(
                config=self._config,
                shard_sizes=[list(size) for size in sizes],
                sharding_option=option,
                topology=self._topology,
                constraints=self._constraints,
                sharder_data=sharder_data_map[option.module_type_key],
            )
            option.is_weighted = contexts[0].is_weighted
            perf_of_size = {size: self._perf(context) for size, context in zip(sizes, contexts, strict=True)}
            for shard in option.shards:
                shard.perf = perf_of_size[tuple(shard.size)]

    def _perf(self, context: ShardPerfContext) -> Perf:
        evaluator = get_embedding_perf_sharding_evaluator(sharding_type=context.sharding_type, is_inference=False)
        return evaluator.compute_perf(ctx=context, config=self._config)


class StateStorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's memory estimator plus `bytes_beyond_estimate`, the bytes that TorchRec leaves out."""

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
        """Set the `storage` of every shard of the options."""
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            for shard in option.shards:
                if shard.storage is not None:
                    shard.storage += bytes_beyond_estimate(
                        option.tensor, shard.size, self._topology.compute_device, option.compute_kernel
                    )


def managed_id_bytes(weight: torch.Tensor, rows: int) -> int:
    """Return the bytes that a managed table keeps for the ids of `rows` rows; 0 for other tables."""
    return int(rows * getattr(weight, "id_bytes_per_row", 0))


def bytes_beyond_estimate(weight: torch.Tensor, size: Sequence[int], device: str, kernel: str) -> Storage:
    """Return the bytes of a shard of `size` that TorchRec's estimate leaves out, on the device or on the host.

    - Optimizer state is in fp32, but TorchRec counts it in the type of the weights.
    - TorchRec does not count the ids of managed rows.
    - A data-parallel table has a gradient as large as the table. Other kernels update rows without a gradient.
    """
    elements = math.prod(size)
    state = math.ceil(optimizer_state_elements(weight, elements))
    beyond = state * (STATE_ELEMENT_BYTES - weight.element_size())
    beyond += managed_id_bytes(weight, size[0])
    if kernel == "dense":
        beyond += elements * weight.element_size()
    on_device = device != "cpu" and kernel in ("fused", "dense")
    return Storage(hbm=beyond if on_device else 0, ddr=0 if on_device else beyond)
