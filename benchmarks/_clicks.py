"""The click log and the model that the speed of a training step is measured on, and the same model by others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

import numpy as np
import pyarrow as pa
import torch
import torchrec
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from asymdiffrec.datasets.batching.batch import Batch, split_into_batches
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.trainer.build import build
from asymdiffrec.trainer.fit.pipeline import build_pipeline
from asymdiffrec.trainer.job import Job

CPU = torch.device("cpu")
LEARNING_RATE, TABLES_RATE = 1e-3, 0.02
Steps = Callable[[], object]


@dataclass(frozen=True)
class Clicks:
    """Id columns of as many equally frequent ids as their table has rows; 5 % of the values are null."""

    fields: int = 39
    rows: int = 50_000
    dim: int = 16
    batch: int = 4096
    hidden: tuple[int, ...] = (400, 400, 400)
    latent: int = 64
    head: int = 32

    def job(self, method: str = "asymdiff", **settings: object) -> Job:
        """`settings` are of the section train."""
        return Job.model_validate(
            {
                "name": "clicks",
                "fields": {name: {"type": "id", "num_embeddings": self.rows} for name in self.names},
                "tables": {"embedding_dim": self.dim, "optimizer": {"name": "adagrad", "learning_rate": TABLES_RATE}},
                "model": {"extractor": {"hidden": self.hidden, "latent": self.latent}, "head": [self.head]},
                "diffusion": {"method": method},
                "train": {"batch_size": self.batch, "learning_rate": LEARNING_RATE, **settings},
            }
        )

    @property
    def names(self) -> list[str]:
        return [f"c{place}" for place in range(self.fields)]

    def table(self, rows: int, seed: int = 0) -> pa.Table:
        rng = np.random.default_rng(seed)
        columns = {
            name: pa.array(rng.integers(0, self.rows, rows), mask=rng.random(rows) < 0.05) for name in self.names
        }
        return pa.table({**columns, "label": rng.integers(0, 2, rows)})

    def batches(self, count: int, size: int, seed: int = 0) -> list[Batch]:
        """`count` batches of `size` samples, as the reader makes them."""
        schema = self.job().to_schema()
        rows = decode(self.table(count * size, seed), schema, "clicks", labelled=True)
        return list(split_into_batches(rows, schema, size))

    def ours(self, batches: Sequence[Batch], method: str, **settings: object) -> Steps:
        """A step of the trainer on each batch, on the workers of the default process group."""
        job = self.job(method, **settings)
        training, stream = build_pipeline(build(job, job.to_schema(), CPU)), cycle(batches)
        return lambda: [training.progress(stream) for _ in batches]

    def operations(self, batch: Batch, method: str) -> int:
        """Floating-point operations of a step's products, forward and backward, on this process."""
        job = self.job(method)
        train_state = build(job, job.to_schema(), CPU)
        with FlopCounterMode(display=False) as counter:
            loss, _ = train_state.model(batch)
            loss.backward()
        return counter.get_total_flops()

    def bare_torchrec(self, batches: Sequence[Batch]) -> Steps:
        """As TorchRec's own examples train: its tables sharded as its planner has it, its pipeline, no diffusion."""
        configs = [
            EmbeddingBagConfig(name=name, num_embeddings=self.rows, embedding_dim=self.dim, feature_names=[name])
            for name in self.names
        ]
        tables = EmbeddingBagCollection(configs, device=torch.device("meta"))
        apply_optimizer_in_backward(torchrec.optim.Adagrad, tables.parameters(), {"lr": TABLES_RATE})
        model = DistributedModelParallel(_Bare(tables, self.dense()), device=CPU)
        dense = KeyedOptimizerWrapper(
            dict(in_backward_optimizer_filter(model.named_parameters())),
            lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0),
        )
        training = TrainPipelineBase(model, CombinedOptimizer([model.fused_optimizer, dense]), CPU)
        stream = cycle(batches)
        return lambda: [training.progress(stream) for _ in batches]

    def plain_torch(self, batches: Sequence[Batch]) -> Steps:
        """A table of sparse gradients for each field; Adagrad for the tables, AdamW for the rest."""
        tables = nn.ModuleList(nn.EmbeddingBag(self.rows, self.dim, mode="sum", sparse=True) for _ in self.names)
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
        """Extractor and head of the base model, told nothing of what is missing, as everyone writes them."""
        sizes = [self.fields * self.dim, *self.hidden, self.latent]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1], nn.Linear(self.latent, self.head), nn.ReLU(), nn.Linear(self.head, 1))


SMALL = Clicks(fields=4, rows=1000, batch=256, hidden=(32,))
"""To see that a program runs"""


class _Bare(nn.Module):
    """The least that TorchRec trains: tables, a perceptron, the loss."""

    def __init__(self, tables: EmbeddingBagCollection, dense: nn.Module) -> None:
        super().__init__()
        self.tables, self.dense = tables, dense

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logit = self.dense(self.tables(batch.ids).values()).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, batch.label)
        return loss, loss.detach()
