"""Compare the test AUC of managed ids and of plain hashing at equal memory, on a click log with many rare ids."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from asymdiffrec.datasets.prepare.write_dataset import write_dataset
from asymdiffrec.embeddings.managed.ids import ROWS_PER_SET, ManagedConfig, id_bytes
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run
from benchmarks._report import arguments, show
from benchmarks._result import Result

TABLES = {"user": 8192, "item": 2048}
"""num_embeddings of the managed tables"""
POPULATION = {"user": 400_000, "item": 40_000}
CONTEXTS = 20
DIM = 16
ROW_BYTES = 2 * 4 * DIM
"""Bytes of one row: weights and Adagrad state"""


@dataclass(frozen=True)
class World:
    """A random click model.

    The log-odds of a click are the sum of an effect of each id and an affinity of user and item.
    """

    user: np.ndarray
    item: np.ndarray
    context: np.ndarray
    tastes: np.ndarray
    kinds: np.ndarray

    @staticmethod
    def draw(seed: int) -> World:
        """Return a click model with random effects."""
        rng = np.random.default_rng([seed, 0])
        users, items = POPULATION.values()
        return World(
            rng.normal(0, 1, users),
            rng.normal(0, 1, items),
            rng.normal(0, 0.3, CONTEXTS),
            rng.normal(0, 0.5, (users, 4)),
            rng.normal(0, 0.5, (items, 4)),
        )

    def log(self, rows: int, rng: np.random.Generator) -> Iterator[pa.Table]:
        """Yield random samples. The frequency of an id is proportional to 1 / (10 + rank)."""
        user, item = (_ranks(size, rows, rng) for size in POPULATION.values())
        context = rng.integers(0, CONTEXTS, rows)
        affinity = (self.tastes[user] * self.kinds[item]).sum(axis=1)
        odds = -1 + self.user[user] + self.item[item] + self.context[context] + affinity
        label = rng.random(rows) < 1 / (1 + np.exp(-odds))
        yield pa.table({"user": user, "item": item, "context": context, "label": label.astype(np.int64)})


def _ranks(population: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Return random ranks in [0, population) with a density of 1 / (10 + rank), [rows] int64."""
    ranks = 10 * np.exp(rng.random(rows) * np.log1p(population / 10)) - 10
    return np.minimum(ranks.astype(np.int64), population - 1)


def prepare(out: Path, rows: int, seed: int) -> None:
    """Write a data set with its job file."""
    world = World.draw(seed)
    splits = {
        split: world.log(size, np.random.default_rng([seed, number]))
        for number, (split, size) in enumerate({"train": rows, "valid": rows // 10, "test": rows // 4}.items(), 1)
    }
    fields = {name: {"type": "id", "num_embeddings": count} for name, count in TABLES.items()}
    fields["context"] = {"type": "id", "num_embeddings": CONTEXTS, "hash": False}
    train = {"batch_size": 1024, "epochs": 4, "log_every": 50}
    model = {"diffusion": {"method": "base"}, "tables": {"embedding_dim": DIM}, "train": train}
    write_dataset(out, splits, {"name": "managed", "data": {"path": ".", "window": 1024}, "fields": fields, **model})


def hashed_overrides(scale: float) -> list[str]:
    """Return overrides for hashed tables that take `scale` times the memory of the managed tables."""
    ids = id_bytes(ROWS_PER_SET, ManagedConfig()) / ROWS_PER_SET
    return [
        f"fields.{name}.num_embeddings={round(scale * rows * (1 + ids / ROW_BYTES))}" for name, rows in TABLES.items()
    ]


def managed_overrides(**settings: Any) -> list[str]:
    """Return overrides for managed tables."""
    kinds = {name: {"collision": "managed"} for name in TABLES}
    return [f"tables.per_table={json.dumps(kinds)}", f"tables.managed={json.dumps(settings)}"]


def measure(data: Path, run: Path, seed: int, overrides: list[str]) -> tuple[float, float]:
    """Train; return the test AUC and the speed in samples per second."""
    job = read_job(data / "job.yaml", [f"train.seed={seed}", *overrides])
    train_job(job, read_statistics(job), Run(run), console=Console(quiet=True))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [record["samples_per_second"] for record in records if "samples_per_second" in record]
    return next(record["test/auc"] for record in records if "test/auc" in record), statistics.median(rates)


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    options = arguments(__doc__ or "", seeds={"type": int, "default": 3, "help": "runs; each has another log"})
    quick = ["train.steps=3"] if options.quick else []
    kinds = {
        "managed": managed_overrides(),
        "hash": hashed_overrides(1),
        "hash, 4 times the memory": hashed_overrides(4),
    }
    measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for seed in range(1 if options.quick else options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data"
            prepare(data, 20_000 if options.quick else 1_000_000, seed)
            for number, (kind, overrides) in enumerate(kinds.items()):
                measured[kind].append(measure(data, Path(temporary) / str(number), seed, [*overrides, *quick]))
    auc, rate = (
        {kind: np.array([values[index] for values in runs]) for kind, runs in measured.items()} for index in (0, 1)
    )
    holds = bool((auc["managed"] > auc["hash"]).all())
    results = [
        Result("AUC, managed", auc["managed"].mean(), "", kind, auc[kind].mean(), *goal)
        for kind, goal in (("hash", ("above on every seed", holds)), ("hash, 4 times the memory", ()))
    ]
    rates = rate["managed"].mean(), rate["hash"].mean()
    results.append(Result("training, managed", rates[0], "samples/s", "hash", rates[1]))
    show(results, options)


if __name__ == "__main__":
    main()
