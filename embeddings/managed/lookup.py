"""Look-up of tables with managed collision: the module, its sharding, and the ids in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection

from asymdiffrec.embeddings import initial_weights as initial
from asymdiffrec.embeddings.managed.ids import COUNTS, ROWS_PER_SET, ManagedConfig, ManagedIds, id_bytes
from asymdiffrec.embeddings.torchrec_compat import Shard, ShardedTensor, ShardMetadata, sharded_tensor, table_name


class ManagedTables(ManagedCollisionEmbeddingBagCollection):
    """TorchRec's look-up of tables with managed collision. It is on the meta device until it is sharded."""

    def __init__(self, tables: Sequence[EmbeddingBagConfig], config: ManagedConfig, weighted: bool) -> None:
        device = torch.device("meta")
        ids = {table.name: ManagedIds(table.name, table.num_embeddings, config, device) for table in tables}
        super().__init__(
            EmbeddingBagCollection(tables=list(tables), is_weighted=weighted, device=device),
            # `ManagedIds` needs no preprocessing before ids are sent, and TorchRec's preprocessing drops their weights.
            ManagedCollisionCollection(ids, list(tables), need_preprocess=False),
        )
        for weight in self.parameters():
            # The planner reads this mark, as it reads the mark of the optimizer.
            weight.id_bytes_per_row = id_bytes(ROWS_PER_SET, config) / ROWS_PER_SET


class ManagedSharder(ManagedCollisionEmbeddingBagCollectionSharder):
    """The sharder of `ManagedTables`: row-wise, in device memory. TorchRec supports only this for managed collision."""

    def __init__(self, tables: EmbeddingBagCollectionSharder) -> None:
        super().__init__(tables, qcomm_codecs_registry=tables.qcomm_codecs_registry)

    @property
    def module_type(self) -> type[ManagedTables]:
        """The module that this sharder shards."""
        return ManagedTables

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Return the fused kernel."""
        return ["fused"]


def managed_ids(model: nn.Module) -> dict[str, ManagedIds]:
    """Return the `ManagedIds` of each managed table on this rank, by table name."""
    return {module.table: module for module in model.modules() if isinstance(module, ManagedIds)}


def reset_rows(model: DistributedModelParallel, weights: Mapping[str, torch.Tensor], std: float, seed: int) -> None:
    """Register the reset of rows: a row with a new id starts with the id's initial weights and zero optimizer state.

    `weights` is the result of `table_weights`.
    """
    tables, states = managed_ids(model), dict[str, list[torch.Tensor]]()
    for key, tensors in model.fused_optimizer.state_dict()["state"].items():
        table = table_name(key)
        states[table] = [tensor.local_tensor() for tensor in tensors.values()] if table in tables else []
    for table, ids in tables.items():
        ids.on_new_rows = _RowReset(table, std, seed, _local(weights[table]), states.get(table, []))


def _local(weight: torch.Tensor) -> torch.Tensor:
    assert isinstance(weight, ShardedTensor)
    return weight.local_tensor()


class _RowReset:
    """A function that resets rows of a table's weights and optimizer state."""

    def __init__(self, table: str, std: float, seed: int, weight: torch.Tensor, states: Sequence[torch.Tensor]) -> None:
        self._table, self._std, self._seed, self._weight, self._states = table, std, seed, weight, states

    @torch.no_grad()
    def __call__(self, rows: torch.Tensor, ids: torch.Tensor) -> None:
        weights = initial.draw_rows(ids, self._weight.shape[1], self._std, self._seed, self._table)
        self._weight[rows] = weights.to(self._weight.dtype)
        for state in self._states:
            state[rows] = 0


def managed_state(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the live tensors of managed tables for checkpoints: `TABLE.NAME` for each NAME of `ManagedIds.state`.

    The result also has `TABLE.step`, the number of training steps. `weights` is the result of `table_weights`; the ids
    are sharded like the weights.
    """
    state: dict[str, torch.Tensor] = {}
    for table, ids in managed_ids(model).items():
        for name, tensor in ids.state().items():
            state[f"{table}.{name}"] = _sharded(tensor, weights[table])
        state[f"{table}.step"] = ids.step
    return state


def _sharded(tensor: torch.Tensor, weight: torch.Tensor) -> ShardedTensor:
    """Return a ShardedTensor of all sets, sharded like the weights. `tensor` [S, ways] has the sets of this rank."""
    assert isinstance(weight, ShardedTensor)
    ways = tensor.shape[1]
    shards = [
        ShardMetadata(
            [part.shard_offsets[0] // ROWS_PER_SET, 0], [part.shard_sizes[0] // ROWS_PER_SET, ways], part.placement
        )
        for part in weight.metadata().shards_metadata
    ]
    size = torch.Size([sum(shard.shard_sizes[0] for shard in shards), ways])
    first_set = weight.local_shards()[0].metadata.shard_offsets[0] // ROWS_PER_SET
    (local,) = [shard for shard in shards if shard.shard_offsets[0] == first_set]
    return sharded_tensor([Shard(tensor, local)], shards, size, tensor.dtype, weight)


def take_counts(model: nn.Module) -> dict[str, int]:
    """Return the counts since the last call, summed over all ranks: `TABLE/NAME` for each NAME of COUNTS.

    The result also has `TABLE/ids`, the number of ids that have a row now. A collective call if the model has managed
    tables.
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
