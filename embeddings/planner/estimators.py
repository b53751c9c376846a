"""TorchRec's estimators of time and memory, asked once for equal shards, and told of the memory that they leave out."""

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
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator, _get_optimizer_multipler
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    Perf,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Storage,
    Topology,
)

STATE_BYTES = 4
"""Of an element of the optimizer's state, which FBGEMM keeps in fp32 whatever the weights are"""


def estimators(topology: Topology, constraints: dict[str, ParameterConstraints]) -> list[ShardEstimator]:
    """Estimators of time and of memory for TorchRec's enumerators."""
    return [OncePerfEstimator(topology, constraints), StateStorageEstimator(topology, constraints)]


class OncePerfEstimator(EmbeddingPerfEstimator):
    """TorchRec's estimate, made once for all shards of a table that are of one size: most of a thousand are."""

    def __init__(self, topology: Topology, constraints: dict[str, ParameterConstraints]) -> None:
        super().__init__(topology, constraints, config=EmbeddingPerfEstimatorConfig())

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
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
            found = {size: self._perf(context) for size, context in zip(sizes, contexts, strict=True)}
            for shard in option.shards:
                shard.perf = found[tuple(shard.size)]

    def _perf(self, context: ShardPerfContext) -> Perf:
        evaluator = get_embedding_perf_sharding_evaluator(sharding_type=context.sharding_type, is_inference=False)
        return evaluator.compute_perf(ctx=context, config=self._config)


class StateStorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's estimate with what it leaves out: it counts the optimizer's state in the type of the weights."""

    def estimate(self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap) -> None:
        super().estimate(sharding_options, sharder_data_map)
        for option in sharding_options:
            for shard in option.shards:
                if shard.storage is not None:
                    shard.storage += bytes_beyond_estimate(
                        option.tensor, shard.size, self._topology.compute_device, option.compute_kernel
                    )


def state_elements(weight: torch.Tensor, elements: int) -> float:
    """What the optimizer keeps for so many elements of a table's weights, which are marked with it."""
    (optimizer,) = getattr(weight, "_optimizer_classes", [None])
    return float(elements * _get_optimizer_multipler(optimizer, weight.shape))


def bytes_beside(weight: torch.Tensor, rows: int) -> int:
    """Of the ids that a managed table keeps of some of its rows."""
    return int(rows * getattr(weight, "bytes_beside_row", 0))


def bytes_beyond_estimate(weight: torch.Tensor, size: Sequence[int], device: str, kernel: str) -> Storage:
    """Bytes of a shard of `size` that TorchRec's estimate leaves out, where they lie.

    They are of the optimizer's state, of the ids of managed rows, and the gradient of a table on every rank, which is
    as large as the table: the other kernels update rows in the backward pass and never hold it.
    """
    elements = math.prod(size)
    beyond = math.ceil(state_elements(weight, elements)) * (STATE_BYTES - weight.element_size())
    beyond += bytes_beside(weight, size[0])
    if kernel == "dense":
        beyond += elements * weight.element_size()
    on_device = device != "cpu" and kernel in ("fused", "dense")
    return Storage(hbm=beyond if on_device else 0, ddr=0 if on_device else beyond)
