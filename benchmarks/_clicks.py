"""The click log and the model for measurements of training speed, and other training loops for the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torchrec
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from asymdiffrec.datasets.batching.batch import Batch, split_into_batches
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.trainer.fit.pipeline import build_pipeline
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.train_state import TrainState, build_train_state

CPU = torch.device("cpu")
LEARNING_RATE, TABLES_RATE = 1e-3, 0.02
Steps = Callable[[], object]
"""A function that makes one training step for each batch of a fixed list"""


@dataclass(frozen=True)
class Clicks:
    """The sizes of a click log with id columns, and of the model that trains on it.

    5 % of the ids are null. All ids of a column are equally frequent.
    """

    fields: int = 39
    rows: int = 50_000
    """num_embeddings of each table"""
    dim: int = 16
    batch: int = 4096
    hidden: tuple[int, ...] = (400, 400, 400)
    latent: int = 64
    head: int = 32
    device: torch.device = CPU
    precision: str = "fp32"

    @property
    def names(self) -> list[str]:
        """Names of the fields"""
        return [f"c{number}" for number in range(self.fields)]

    @property
    def table_sizes(self) -> list[int]:
        """num_embeddings of each field's table"""
        return [self.rows] * self.fields

    def job(self, method: str = "asymdiff", tables: dict[str, Any] | None = None, **settings: object) -> Job:
        """Return the job of the model. `settings` are keys of its section `train`, `tables` of its section `tables`."""
        sizes = zip(self.names, self.table_sizes, strict=True)
        optimizer = {"name": "adagrad", "learning_rate": TABLES_RATE}
        train = {"batch_size": self.batch, "learning_rate": LEARNING_RATE, "precision": self.precision}
        return Job.model_validate(
            {
                "name": "clicks",
                "fields": {name: {"type": "id", "num_embeddings": size} for name, size in sizes},
                "tables": {"embedding_dim": self.dim, "optimizer": optimizer, **(tables or {})},
                "model": {"extractor": {"hidden": self.hidden, "latent": self.latent}, "head": [self.head]},
                "diffusion": {"method": method},
                "train": {**train, **settings},
            }
        )

    def draw_ids(self, rng: np.random.Generator, size: int, count: int) -> np.ndarray:
        """Return `count` random ids of a table with `size` rows, [count] int64."""
        return rng.integers(0, size, count)

    def table(self, rows: int, seed: int = 0) -> pa.Table:
        """Return random samples: the id columns and the label."""
        rng = np.random.default_rng(seed)
        columns = {
            name: pa.array(self.draw_ids(rng, size, rows), mask=rng.random(rows) < 0.05)
            for name, size in zip(self.names, self.table_sizes, strict=True)
        }
        return pa.table({**columns, "label": rng.integers(0, 2, rows)})

    def batches(self, count: int, size: int, seed: int = 0) -> list[Batch]:
        """Return `count` batches of `size` samples in the form that the reader returns.

        For a GPU they are in pinned memory.
        """
        schema = self.job().to_schema()
        rows = decode(self.table(count * size, seed), schema, "clicks", labelled=True)
        batches = split_into_batches(rows, schema, size)
        return [batch.pin_memory() if self.device.type == "cuda" else batch for batch in batches]

    def build(self, job: Job) -> TrainState:
        """Build the model of a job on the workers of the default process group."""
        return build_train_state(job, job.to_schema(), self.device)

    def ours(self, batches: Sequence[Batch], method: str, **settings: Any) -> Steps:
        """Return a function that trains with our trainer, on the workers of the default process group."""
        training, stream = build_pipeline(self.build(self.job(method, **settings))), cycle(batches)
        return lambda: [training.progress(stream) for _ in batches]

    def operations(self, batch: Batch, method: str) -> int:
        """Return the number of floating-point operations in the matrix products of a step, forward and backward.

        Only the operations of this process are counted.
        """
        train_state = self.build(self.job(method))
        with FlopCounterMode(display=False) as counter:
            loss, _ = train_state.model(batch)
            loss.backward()
        return counter.get_total_flops()

    def bare_torchrec(self, batches: Sequence[Batch], compiled: bool = False) -> Steps:
        """Return a function that trains as in TorchRec's examples: TorchRec's planner and pipeline, no diffusion."""
        configs = [
            EmbeddingBagConfig(name=name, num_embeddings=size, embedding_dim=self.dim, feature_names=[name])
            for name, size in zip(self.names, self.table_sizes, strict=True)
        ]
        tables = EmbeddingBagCollection(configs, device=torch.device("meta"))
        apply_optimizer_in_backward(torchrec.optim.Adagrad, tables.parameters(), {"lr": TABLES_RATE})
        bare = _Bare(tables, self.dense().to(self.device), self.precision == "bf16")
        model = DistributedModelParallel(bare, device=self.device)
        if compiled:
            bare.dense.compile(dynamic=False)
        dense = KeyedOptimizerWrapper(
            dict(in_backward_optimizer_filter(model.named_parameters())),
            lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0),
        )
        optimizer = CombinedOptimizer([model.fused_optimizer, dense])
        training: TrainPipelineBase | TrainPipelineSparseDist
        if self.device.type == "cuda":
            training = TrainPipelineSparseDist(model, optimizer, self.device, execute_all_batches=False)
        else:
            training = TrainPipelineBase(model, optimizer, self.device)
        stream = cycle(batches)
        return lambda: [training.progress(stream) for _ in batches]

    def plain_torch(self, batches: Sequence[Batch]) -> Steps:
        """Return a function that trains one `nn.EmbeddingBag` per field, with plain PyTorch.

        The tables have sparse gradients and Adagrad, the other parameters AdamW.
        """
        tables = nn.ModuleList(nn.EmbeddingBag(size, self.dim, mode="sum", sparse=True) for size in self.table_sizes)
        dense = self.dense()
        optimizers = [
            torch.optim.Adagrad(tables.parameters(), lr=TABLES_RATE),
            torch.optim.AdamW(dense.parameters(), lr=LEARNING_RATE, weight_decay=0.0),
        ]

        def step(batch: Batch) -> None:
            for optimizer in optimizers:
                optimizer.zero_grad()
            bags = (batch.ids[name] for name in self.names)
            parts = [table(bag.values(), bag.offsets()[:-1]) for table, bag in zip(tables, bags, strict=True)]
            logit = dense(torch.cat(parts, dim=1)).squeeze(1)
            nn.functional.binary_cross_entropy_with_logits(logit, batch.label).backward()
            for optimizer in optimizers:
                optimizer.step()

        def steps() -> None:
            for batch in batches:
                step(batch)

        return steps

    def dense(self) -> nn.Sequential:
        """Return the extractor and the head of the base model as a plain MLP, which does not get the mask."""
        sizes = [self.fields * self.dim, *self.hidden, self.latent]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1], nn.Linear(self.latent, self.head), nn.ReLU(), nn.Linear(self.head, 1))


SMALL = Clicks(fields=4, rows=1000, batch=256, hidden=(32,))
"""Sizes for a quick run"""


class _Bare(nn.Module):
    """A minimal TorchRec model: tables, an MLP and the loss."""

    def __init__(self, tables: EmbeddingBagCollection, dense: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.tables, self.dense, self.bf16 = tables, dense, bf16

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (loss, detached loss).

        The pipeline calls backward on the first and returns the second to the caller.
        """
        x = self.tables(batch.ids).values()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logit = self.dense(x).float().squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, batch.label)
        return loss, loss.detach()
