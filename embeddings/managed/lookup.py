"""Tables with managed collision in a model: their look-up, how it is sharded, and what checkpoints hold of the ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, TensorProperties
from torch.distributed._shard.sharding_spec import ShardMetadata
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

from asymdiffrec.embeddings import initial_weights as initial
from asymdiffrec.embeddings.managed.ids import COUNTS, WAYS, ManagedConfig, ManagedIds, id_bytes
from asymdiffrec.embeddings.torchrec_compat import table_name


class ManagedTables(ManagedCollisionEmbeddingBagCollection):
    """TorchRec's look-up of `tables` by ids of any size, on the meta device until it is sharded."""

    def __init__(self, tables: Sequence[EmbeddingBagConfig], config: ManagedConfig, weighted: bool) -> None:
        device = torch.device("meta")
        ids = {table.name: ManagedIds(table.name, table.num_embeddings, config, device) for table in tables}
        super().__init__(
            EmbeddingBagCollection(tables=list(tables), is_weighted=weighted, device=device),
            # What TorchRec would do before it sends ids to their ranks is nothing here, but loses their weights.
            ManagedCollisionCollection(ids, list(tables), need_preprocess=False),
        )
        for weight in self.parameters():
            weight.bytes_beside_row = id_bytes(WAYS, config) / WAYS  # for the planner, as the optimizer's mark is


class ManagedSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """Row-wise, in the memory of the device: the one way in which TorchRec shards managed collision."""

    def __init__(self, tables: EmbeddingBagCollectionSharder) -> None:
        super().__init__(tables, qcomm_codecs_registry=tables.qcomm_codecs_registry)

    @property
    def module_type(self) -> type[ManagedTables]:
        return ManagedTables

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return ["fused"]


def managed_ids(model: nn.Module) -> dict[str, ManagedIds]:
    """The ids that this rank holds of each managed table, by name."""
    return {module.table: module for module in model.modules() if isinstance(module, ManagedIds)}


def reset_rows(model: DistributedModelParallel, weights: Mapping[str, torch.Tensor], std: float, seed: int) -> None:
    """From now on a row that changes hands begins as a new one: with the initial weights of its id, and state zero.

    `weights` are those of `table_weights`.
    """
    tables, states = managed_ids(model), dict[str, list[torch.Tensor]]()
    for key, tensors in model.fused_optimizer.state_dict()["state"].items():
        table = table_name(key)
        states[table] = [tensor.local_tensor() for tensor in tensors.values()] if table in tables else []
    for table, ids in tables.items():
        ids.reset = _Reset(table, std, seed, _local(weights[table]), states.get(table, []))


def _local(weight: torch.Tensor) -> torch.Tensor:
    assert isinstance(weight, ShardedTensor)
    return weight.local_tensor()


class _Reset:
    """Resets rows of a table's weights and optimizer states."""

    def __init__(self, table: str, std: float, seed: int, weight: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        self._table, self._std, self._seed, self._weight, self._states = table, std, seed, weight, states

    @torch.no_grad()
    def __call__(self, rows: torch.Tensor, ids: torch.Tensor) -> None:
        drawn = initial.draw_rows(ids, self._weight.shape[1], self._std, self._seed, self._table)
        self._weight[rows] = drawn.to(self._weight.dtype)
        for state in self._states:
            state[rows] = 0


def managed_state(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `table_state` has of managed tables beside their rows: the live `TABLE.ids`, what they are ranked by, the
    candidates for a row, and `TABLE.step`. `weights` are those of `table_weights`, and tell what each rank holds."""
    state: dict[str, torch.Tensor] = {}
    for table, ids in managed_ids(model).items():
        for name, tensor in ids.state().items():
            state[f"{table}.{name}"] = _sharded(tensor, weights[table])
        state[f"{table}.step"] = ids.step
    return state


def _sharded(tensor: torch.Tensor, weight: torch.Tensor) -> ShardedTensor:
    """This rank's sets [S, ways] as its shard of those of all ranks, which are sharded like the weights."""
    assert isinstance(weight, ShardedTensor)
    ways = tensor.shape[1]
    shards = [
        ShardMetadata([part.shard_offsets[0] // WAYS, 0], [part.shard_sizes[0] // WAYS, ways], part.placement)
        for part in weight.metadata().shards_metadata
    ]
    size = torch.Size([sum(shard.shard_sizes[0] for shard in shards), ways])
    first = weight.local_shards()[0].metadata.shard_offsets[0] // WAYS
    (own,) = [shard for shard in shards if shard.shard_offsets[0] == first]
    return ShardedTensor._init_from_local_shards_and_global_metadata(
        [Shard(tensor, own)],
        ShardedTensorMetadata(shards, size, TensorProperties(dtype=tensor.dtype)),
        weight._process_group,
    )


def take_counts(model: nn.Module) -> dict[str, int]:
    """What was counted since the last call, over all ranks: `TABLE/NAME` of `COUNTS`; `TABLE/ids` that have a row now.

    A collective call where there are managed tables.
    """
    tables = managed_ids(model)
    if not tables:
        return {}
    counts = torch.stack([ids.take_counts() for ids in tables.values()])
    dist.all_reduce(counts)
    return {
        f"{table}/{name}": value
        for table, row in zip(tables, counts.tolist(), strict=True)
        for name, value in zip((*COUNTS, "ids"), row, strict=True)
    }
