"""A small model with two managed tables, its training, and its checkpoints."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.managed.ids import ManagedConfig, ManagedIds, id_range
from asymdiffrec.embeddings.managed.lookup import take_counts
from asymdiffrec.embeddings.optimizers import tables_optimizer
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import Cluster, local_cluster
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.problem import Problem
from asymdiffrec.embeddings.sharding import run_on_rank_0, shard
from asymdiffrec.embeddings.state import table_state
from asymdiffrec.embeddings.tables import FieldTables

CPU = torch.device("cpu")
SEED, BATCH = 5, 64


def managed_module(rows: int, **settings: object) -> ManagedIds:
    return ManagedIds("user", rows, ManagedConfig.model_validate(settings), CPU)


def rows_of(managed: ManagedIds, ids: torch.Tensor) -> torch.Tensor:
    """Return the row of each id; in training mode this is one step of the module."""
    feature = JaggedTensor(ids, lengths=torch.ones(len(ids), dtype=torch.int64))
    return managed({"user": feature})["user"].values()


def universe(rows: int, count: int) -> torch.Tensor:
    """Return distinct ids of a table with `rows` rows."""
    return torch.randint(0, id_range(rows), (count,), generator=torch.Generator().manual_seed(rows))


def skewed(ids: torch.Tensor, count: int, step: int) -> torch.Tensor:
    """Draw `count` of `ids`; the first ids are drawn more often."""
    draw = torch.rand(count, generator=torch.Generator().manual_seed(step))
    return ids[(len(ids) * draw**3).long()]


def schema(rows: int):
    fields = {
        "user": {"type": "id", "num_embeddings": rows},
        "history": {"type": "id_list", "num_embeddings": rows, "table": "user"},
        "item": {"type": "id", "num_embeddings": 30},
        "tags": {"type": "id_list", "num_embeddings": rows, "embedding_dim": 8},
    }
    return FieldsConfig.model_validate({"fields": fields}).to_schema()


def config(optimizer: str = "adagrad", collision: str = "managed", **managed: object) -> TablesConfig:
    kinds = {"user": {"collision": collision}, "tags": {"collision": collision}}
    return TablesConfig.model_validate(
        {"optimizer": {"name": optimizer, "learning_rate": 0.05}, "per_table": kinds, "managed": managed}
    )


def batch(step: int, rows: int, count: int = 300) -> Batch:
    """Return this rank's part of a global batch; `user` and `history` share a table."""
    draw = torch.Generator().manual_seed(step)
    lengths = torch.stack(
        [torch.randint(0, longest + 1, (BATCH,), generator=draw) for longest in (1, 3, 1, 4)]  # of each field
    )
    users, tags = universe(rows, count), universe(rows, 40)
    values = [
        skewed(users, lengths[0].sum(), 4 * step),
        skewed(users, lengths[1].sum(), 4 * step + 1),
        torch.randint(0, 30, (lengths[2].sum(),), generator=draw),
        skewed(tags, lengths[3].sum(), 4 * step + 2),
    ]
    label = torch.bernoulli(torch.full((BATCH,), 0.4), generator=draw)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    samples = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    bags = [torch.cat(part.split(length.tolist())[samples]) for part, length in zip(values, lengths, strict=True)]
    size = samples.stop - samples.start
    return Batch(
        ids=KeyedJaggedTensor(
            ["user", "history", "item", "tags"], torch.cat(bags), lengths=lengths[:, samples].flatten()
        ),
        numeric=torch.zeros(size, 0),
        missing=(lengths == 0).T,
        label=label[samples],
        weight=torch.ones(size),
        user=torch.zeros(size, dtype=torch.int64),
        sample_index=torch.arange(size),
        num_samples=size,
    )


class Model(nn.Module):
    def __init__(self, tables: FieldTables):
        super().__init__()
        self.tables = tables
        self.head = nn.Linear(tables.layout.total_width, 1)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        clean, missing = self.tables(batch)
        loss = nn.functional.binary_cross_entropy_with_logits(self.head(clean).squeeze(1), batch.label)
        return loss, missing


def problem(model: nn.Module, fields: Schema, tables_config: TablesConfig, cluster: Cluster) -> Problem:
    return Problem(model, fields, tables_config, cluster, BATCH, DenseWork(0, 0.0, 0.0, 0, 0, 0))


def make(rows: int, tables_config: TablesConfig, seed: int = SEED):
    """Return a sharded model and the optimizer of its tables; its head is not trained."""
    torch.manual_seed(SEED)
    model = Model(FieldTables(schema(rows), tables_config))
    cluster = local_cluster("cpu", None, dist.get_world_size())
    plan = run_on_rank_0(lambda: solve(problem(model, schema(rows), tables_config, cluster)).plan)
    sharded = shard(model, tables_config, plan, CPU, seed)
    return sharded, tables_optimizer(sharded, tables_config.optimizer)


def train(model, optimizer, steps, batches) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss, _ = model(batches(step))
        loss.backward()
        optimizer.step()
        mean_loss = loss.detach().clone()
        dist.all_reduce(mean_loss)
        losses.append(mean_loss.item() / dist.get_world_size())
    return losses


def small(step: int) -> Batch:
    return batch(step, 128)


def save_and_go_on(folder: Path, eviction: str = "lfu", rows: int = 128) -> dict:
    """Train, save, and train further; return the losses and the counts."""
    tables_config = config(eviction=eviction)
    model, update = make(rows, tables_config)
    losses = train(model, update, range(8), lambda step: batch(step, rows))
    counts = take_counts(model)
    dcp.save(table_state(model, update, tables_config.optimizer), checkpoint_id=folder)
    losses += train(model, update, range(8, 16), lambda step: batch(step, rows))
    return {"losses": losses, "counts": [counts, take_counts(model)]}


def load_and_go_on(source: Path, eviction: str = "lfu", rows: int = 128) -> dict:
    tables_config = config(eviction=eviction)
    model, update = make(rows, tables_config, seed=SEED)
    dcp.load(table_state(model, update, tables_config.optimizer), checkpoint_id=source)
    losses = train(model, update, range(8, 16), lambda step: batch(step, rows))
    return {"losses": losses, "counts": [take_counts(model)]}
