"""A small model of four tables under any sharding, its training, and its checkpoints."""

import functools

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.types import ShardingPlan
from torchrec.optim.keyed import KeyedOptimizerWrapper
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.schema import FieldsConfig, Schema
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.optimizers import dense_parameters, tables_optimizer
from asymdiffrec.embeddings.planner.dense import DenseWork
from asymdiffrec.embeddings.planner.devices import local_cluster
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.embeddings.planner.problem import Problem
from asymdiffrec.embeddings.sharding import run_on_rank_0, shard
from asymdiffrec.embeddings.tables import FieldTables

SCHEMA = FieldsConfig.model_validate(
    {
        "fields": {
            "age": {"type": "number"},
            "user": {"type": "id", "num_embeddings": 40},
            "item": {"type": "id", "num_embeddings": 30},
            "tags": {"type": "id_list", "num_embeddings": 12, "pooling": "sum", "embedding_dim": 8},
            "history": {"type": "id_list", "num_embeddings": 30, "table": "item"},
            "country": {"type": "id", "num_embeddings": 7},
            "price": {"type": "number", "embedding_dim": 4},
        }
    }
).to_schema()
TABLES = {"user": (40, 16), "item": (30, 16), "tags": (12, 8), "country": (7, 16)}
POOLING = {"user": "sum", "item": "mean", "tags": "sum", "country": "sum"}
SEED, BATCH = 5, 32
MIXED = {"user": "data_parallel", "item": "row_wise", "tags": "column_wise", "country": "table_wise"}


def config(optimizer: str, kind: str) -> TablesConfig:
    plans = {"mixed": MIXED, "planned": {}, "half": MIXED, "half_sent": MIXED}
    rates = {"sgd": 1.0, "adagrad": 0.05, "rowwise_adagrad": 0.05}
    return TablesConfig.model_validate(
        {
            "optimizer": {"name": optimizer, "learning_rate": rates[optimizer]},
            "per_table": {
                table: {"sharding": sharding}
                for table, sharding in plans.get(kind, dict.fromkeys(TABLES, kind)).items()
            },
            "dtype": "fp16" if kind == "half" else "fp32",
            "communication": "fp16" if kind == "half_sent" else "fp32",
        }
    )


@functools.cache
def batch(step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """Return this rank's part of a global batch, in which some fields are missing."""
    draw = torch.Generator().manual_seed(step)
    bags = {name: [] for name in SCHEMA.sparse}
    for name, field in SCHEMA.sparse.items():
        longest = 1 if field.type == "id" else 4
        for length in torch.randint(0, longest + 1, (BATCH,), generator=draw).tolist():
            bags[name].append(torch.randint(0, field.num_embeddings, (length,), generator=draw))
    numbers = torch.randn(BATCH, 2, generator=draw)
    is_missing = torch.rand(BATCH, 2, generator=draw) < 0.3
    label = torch.bernoulli(torch.full((BATCH,), 0.4), generator=draw)
    samples = slice(rank * BATCH // ranks, (rank + 1) * BATCH // ranks)
    lengths = torch.tensor([[len(bag) for bag in bags[name][samples]] for name in bags])
    count = lengths.shape[1]
    return Batch(
        ids=KeyedJaggedTensor(
            keys=list(bags),
            values=torch.cat([torch.cat(bags[name][samples]) for name in bags]),
            lengths=lengths.flatten(),
        ),
        numeric=numbers.masked_fill(is_missing, 0.0)[samples],
        missing=torch.cat([lengths.T == 0, is_missing[samples]], dim=1),
        label=label[samples],
        weight=torch.ones(count),
        user=torch.zeros(count, dtype=torch.int64),
        sample_index=torch.arange(count),
        num_samples=count,
    )


class Model(nn.Module):
    def __init__(self, tables: nn.Module, width: int):
        super().__init__()
        self.tables = tables
        self.head = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        clean, missing = self.tables(batch)
        logits = self.head(clean).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, batch.label), missing


def planned(model: nn.Module, schema: Schema, tables_config: TablesConfig) -> ShardingPlan:
    cluster = local_cluster("cpu", None, dist.get_world_size())
    problem = Problem(model, schema, tables_config, cluster, BATCH, DenseWork(0, 0.0, 0.0, 0, 0, 0))
    return run_on_rank_0(lambda: solve(problem).plan)


def make(tables_config: TablesConfig, seed: int = SEED):
    """Return the sharded model, the optimizer of its tables and the optimizer of its dense part."""
    torch.manual_seed(seed)
    tables = FieldTables(SCHEMA, tables_config)
    model = Model(tables, tables.layout.total_width)
    plan = planned(model, SCHEMA, tables_config)
    sharded = shard(model, tables_config, plan, torch.device("cpu"), seed)
    dense = KeyedOptimizerWrapper(dense_parameters(sharded), lambda weights: torch.optim.SGD(weights, lr=0.3))
    return sharded, tables_optimizer(sharded, tables_config.optimizer), dense


def train(model, optimizers, steps) -> list[float]:
    losses = []
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss, _ = model(batch(step, dist.get_rank(), dist.get_world_size()))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        mean_loss = loss.detach().clone()
        dist.all_reduce(mean_loss)
        losses.append(mean_loss.item() / dist.get_world_size())
    return losses
