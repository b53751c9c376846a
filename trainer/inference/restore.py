"""A trained run brought back on one worker: to evaluate it and to predict with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress

from asymdiffrec.base import InputError
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.datasets.reader import EvaluationReader
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.datasets.statistics.seen_ids import seen_ids
from asymdiffrec.diffusion.model import Recommender
from asymdiffrec.embeddings.serving_tables import Precision
from asymdiffrec.serving.export import Scorer, is_export, load_export
from asymdiffrec.serving.predict import predict
from asymdiffrec.trainer.build import TrainState, build, worker_device
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.evaluation.evaluate import Scored, evaluate, joined, scored
from asymdiffrec.trainer.evaluation.scenarios import Asked, Scenario
from asymdiffrec.trainer.fit.loop import evaluation_batch
from asymdiffrec.trainer.inference.quantised import parts_of, scorer_of
from asymdiffrec.trainer.job import Job
from asymdiffrec.trainer.run import open_run

PREDICTED = 4096
"""Rows that an export scores at a time: what a layer makes of more leaves the caches, and with fewer threads wait for
each other more often"""


@dataclass(frozen=True)
class Restored:
    job: Job
    schema: Schema
    train_state: TrainState
    step: int


@contextmanager
def restored(folder: Path) -> Iterator[Restored]:
    """The model of a run's best step, within a process group of this process alone."""
    run = open_run(folder)
    # Scoring needs no optimizer state: the tables fit into half the memory, and those of a run with Adam onto a CPU.
    job = run.job(("cluster={}", "tables.optimizer={name: sgd}"))
    checkpoints = Checkpoints(run.checkpoints(job))
    step = checkpoints.best()
    if step is None:
        raise InputError(f"{folder}: no checkpoint yet")
    job = job.model_copy(update={"tables": job.tables.unplaced()})
    schema = job.to_schema(run.statistics())
    with process_group(dist.HashStore(), 0, 1, job.cluster, one_node=True):
        if damage := checkpoints.damage(step):
            raise CheckpointError(damage)
        train_state = build(job, schema, worker_device())
        checkpoints.load_weights(step, train_state)
        yield Restored(job, schema, train_state, step)


@dataclass(frozen=True)
class Evaluation:
    step: int
    results: list[dict[str, Any]]
    """The metrics under each scenario"""
    table_bytes: tuple[int, int] | None
    """As trained and as rounded, where they were rounded"""


def evaluate_run(
    folder: Path,
    split: str,
    scenarios: Callable[[Schema], Sequence[Scenario]],
    console: Console,
    tables: Precision | None = None,
) -> Evaluation:
    """Evaluate a run's best step on a split under the scenarios for its schema, as it is served with `tables` of that
    precision where it is given. Raises InputError where the run has no such split or scenario."""
    if split not in ("train", "valid", "test"):
        raise InputError(f"--split {split}: expected train, valid or test")
    with restored(folder) as model, tempfile.TemporaryDirectory(prefix="asymdiffrec-") as spill:
        asked = scenarios(model.schema)
        scorer: Recommender | Scorer = model.train_state.recommender
        sizes = None
        if tables:
            file = Path(spill) / "tables.bin"
            parts = parts_of(model.train_state)
            scorer = scorer_of(model.train_state, parts, model.schema, model.job.tables, tables, file)
            sizes = sum(weight.nbytes for weight in parts.tables.values()), file.stat().st_size
        settings = model.job.train
        reader = EvaluationReader(
            model.schema, open_shards(model.job.location(split)), evaluation_batch(settings.batch_size)
        )
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"evaluating the {split} split", total=len(reader))
            results = evaluate(
                scorer,
                reader,
                asked,
                Path(spill),
                settings.metric_rows,
                advance=lambda: progress.advance(task),
                seen=seen_for(asked, model.schema, model.job),
            )
        return Evaluation(model.step, results, sizes)


def seen_for(scenarios: Sequence[Scenario], schema: Schema, job: Job) -> dict[str, np.ndarray]:
    """The ids in training rows of the fields whose unseen ones a scenario asks for."""
    names = sorted({scenario.unseen for scenario in scenarios if scenario.unseen})
    return seen_ids(schema, open_shards(job.location("train")), names) if names else {}


def score_run(folder: Path, split: str, asked: Asked) -> Scored:
    """What a run's best step says of every row of a split, in order, under each scenario."""
    with restored(folder) as model:
        schema, shards = model.schema, open_shards(model.job.location(split))
        scenarios = asked.of(schema)
        reader = EvaluationReader(schema, shards, evaluation_batch(model.job.train.batch_size))
        parts = list(scored(model.train_state.recommender, reader, scenarios, seen_for(scenarios, schema, model.job)))
    return joined([part for part in parts if part is not None])


def predict_run(folder: Path, data: str, out: Path, console: Console, *, allow_user_classes: bool = False) -> int:
    """Score every row of `data` with a run's best step, or, on all cores, with an export; returns their number."""
    with ExitStack() as stack:
        model: Recommender | Scorer
        if is_export(folder):
            bundle = load_export(folder, allow_user_classes=allow_user_classes)
            model, schema, size, device = bundle.model, bundle.schema, PREDICTED, torch.device("cpu")
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            stack.callback(torch.set_num_threads, threads)
        else:
            run = stack.enter_context(restored(folder))
            size, threads = evaluation_batch(run.job.train.batch_size), 1
            model, schema, device = run.train_state.recommender, run.schema, run.train_state.device
        shards = open_shards(data)
        progress = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = progress.add_task("predicting", total=shards.rows)
        return predict(model, schema, shards, out, size, device, lambda rows: progress.advance(task, rows), threads)
