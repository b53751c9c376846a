"""Evaluation of a sharded model on one split: every rank scores its rows, rank 0 computes the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import EvaluationReader, WorkerContext
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.diffusion.recommender import Recommender
from asymdiffrec.serving.scorer import Scorer
from asymdiffrec.trainer.evaluation.accumulator import MetricAccumulator, rows_in_memory
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.job import Job

MIN_BATCH_SIZE = 8192
"""Minimum number of samples of an evaluation step: small batches are slow, and without gradients more samples fit"""

TrainingIds = Mapping[str, np.ndarray]
"""{name of the field: ids that occur in training rows, sorted, int64 [V]}"""


@dataclass(frozen=True)
class Scores:
    """The scores of B samples of a split under K scenarios."""

    logits: np.ndarray
    """[K, B] float32"""
    counted: np.ndarray
    """[K, B] bool: whether a scenario counts the sample"""
    label: np.ndarray
    """[B]"""
    weight: np.ndarray
    """[B]"""
    user: np.ndarray | None
    """[B] int64"""


class SplitSamples(NamedTuple):
    """Everything that the metrics of a split of R samples need besides logits."""

    counted: np.ndarray
    """[K, R] bool: whether a scenario counts the sample"""
    label: np.ndarray
    """[R]"""
    weight: np.ndarray
    """[R]"""
    user: np.ndarray | None
    """[R] int64"""


def evaluation_batch_size(job: Job) -> int:
    """Return the number of samples of one evaluation step over all ranks."""
    return max(job.train.batch_size, MIN_BATCH_SIZE)


def evaluation_reader(job: Job, schema: Schema, split: str, context: WorkerContext | None = None) -> EvaluationReader:
    """Return the reader of one rank's part of a split: train, valid or test. Without a context it reads all rows.

    Raises InputError if the job has no such split or the split lacks a column.
    """
    return EvaluationReader(schema, open_shards(job.location(split)), evaluation_batch_size(job), context)


def evaluate(
    model: Recommender | Scorer,
    reader: EvaluationReader,
    scenarios: Sequence[Scenario],
    spill_folder: Path,
    advance: Callable[[], None] = lambda: None,
    training_ids: TrainingIds | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Return the metrics of a split under each scenario, the same on every rank. A collective call.

    `reader` reads this rank's part. `advance` is called after each batch. `training_ids` must contain each
    `unseen_field` of the scenarios. Rank 0 keeps `limit` rows of all scenarios together in memory, and writes further
    rows to `spill_folder`. If `limit` is None, it is `rows_in_memory()`.
    """
    with ExitStack() as stack:
        rows_of_each = max(1, (limit or rows_in_memory()) // len(scenarios))
        accumulators = [stack.enter_context(MetricAccumulator(spill_folder, rows_of_each)) for _ in scenarios]
        for batch in score_batches(model, reader, scenarios, training_ids):
            if batch is not None:
                for accumulator, logits, counted in zip(accumulators, batch.logits, batch.counted, strict=True):
                    user = batch.user[counted] if batch.user is not None else None
                    accumulator.update(logits[counted], batch.label[counted], batch.weight[counted], user)
            advance()
        is_first = dist.get_rank() == 0
        results: list[Any] = [[accumulator.compute() for accumulator in accumulators] if is_first else None]
    dist.broadcast_object_list(results, src=0)
    return [
        {"scenario": scenario.name, "missing": scenario.share, **metrics}
        for scenario, metrics in zip(scenarios, results[0], strict=True)
    ]


def score_batches(
    model: Recommender | Scorer,
    reader: EvaluationReader,
    scenarios: Sequence[Scenario],
    training_ids: TrainingIds | None = None,
) -> Iterator[Scores | None]:
    """Yield the scores of each batch, gathered from all ranks, on rank 0; yield None on other ranks. A collective call.

    Tables are looked up once for all scenarios. The scores contain every sample of the split, also samples that a
    scenario does not count; padding is left out.
    """
    device, is_first = next(model.diffusion.parameters()).device, dist.get_rank() == 0
    processes = [scenario.process(model.diffusion.layout, reader.schema) for scenario in scenarios]
    processes = [process.to(device) if process is not None else None for process in processes]
    model.eval()
    with torch.no_grad():
        for batch in reader.batches():
            batch = batch.to(device)
            x, missing = model.tables(batch)
            logits = [
                model.diffusion.score(*(process(x, missing, batch.sample_index) if process else (x, missing)))
                for process in processes
            ]
            is_sample = torch.arange(len(batch), device=device) < batch.num_samples
            counted = [_counted(batch, scenario, training_ids or {}) for scenario in scenarios]
            columns = [torch.stack(logits, 1), torch.stack(counted, 1), batch.label, batch.weight, batch.user]
            gathered = [_gather(column, is_first) for column in columns]
            is_sample = _gather(is_sample, is_first)
            if not is_first:
                yield None
                continue
            logit, count, label, weight, user = (column[is_sample].cpu().numpy() for column in gathered)
            has_users = reader.schema.data.user is not None
            yield Scores(logit.T, count.T, label, weight, user if has_users else None)
    model.train()


def concatenate_scores(parts: Sequence[Scores]) -> Scores:
    """Return the scores of all parts, concatenated in order."""
    logits, counted = (
        np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("logits", "counted")
    )
    label, weight = (np.concatenate([getattr(part, name) for part in parts]) for name in ("label", "weight"))
    users = [part.user for part in parts if part.user is not None]
    return Scores(logits, counted, label, weight, np.concatenate(users) if users else None)


def read_samples(reader: EvaluationReader, scenarios: Sequence[Scenario], training_ids: TrainingIds) -> SplitSamples:
    """Read labels, weights and users of a whole split on one process, without scoring it."""
    parts: list[list[np.ndarray]] = []
    for batch in reader.batches():
        counted = torch.stack([_counted(batch, scenario, training_ids) for scenario in scenarios], 1)
        columns = (counted, batch.label, batch.weight, batch.user)
        parts.append([column[: batch.num_samples].numpy() for column in columns])
    count, label, weight, user = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SplitSamples(count.T, label, weight, user if reader.schema.data.user is not None else None)


def _counted(batch: Batch, scenario: Scenario, training_ids: TrainingIds) -> torch.Tensor:
    """Return [B] bool: whether the scenario counts the sample. An id that is missing does not count as unseen."""
    if scenario.unseen_field is None:
        return torch.ones_like(batch.label, dtype=torch.bool)
    ids = batch.ids[scenario.unseen_field]
    in_training = torch.from_numpy(training_ids[scenario.unseen_field]).to(batch.label.device)
    is_unseen = torch.zeros_like(batch.label, dtype=torch.bool)
    is_unseen[ids.lengths() == 1] = ~torch.isin(ids.values(), in_training)
    return is_unseen


def _gather(column: torch.Tensor, is_first: bool) -> torch.Tensor:
    """Return on rank 0 the tensors of all ranks, in rank order. Batches have the same size on all ranks."""
    if dist.get_world_size() == 1:
        return column
    column = column.contiguous()
    parts = [torch.empty_like(column) for _ in range(dist.get_world_size())] if is_first else None
    dist.gather(column, parts, dst=0)
    return torch.cat(parts) if parts else column
