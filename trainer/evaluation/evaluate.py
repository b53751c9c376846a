"""Evaluation of a sharded model on one split: every worker scores its rows, the first one computes the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import EvaluationReader
from asymdiffrec.diffusion.model import Recommender
from asymdiffrec.serving.export import Scorer
from asymdiffrec.trainer.evaluation.accumulator import MetricAccumulator
from asymdiffrec.trainer.evaluation.scenarios import Scenario

Seen = Mapping[str, np.ndarray]
"""By the name of a field, the ids that are in training rows, sorted, as batches have them"""


@dataclass(frozen=True)
class Scored:
    """Some samples of a split under K scenarios."""

    logits: np.ndarray
    """[K, B] float32"""
    counts: np.ndarray
    """[K, B] bool: which of the samples are a scenario's"""
    label: np.ndarray
    weight: np.ndarray
    user: np.ndarray | None
    """[B] int64"""


def evaluate(
    model: Recommender | Scorer,
    reader: EvaluationReader,
    scenarios: Sequence[Scenario],
    spill_folder: Path,
    limit: int,
    advance: Callable[[], None] = lambda: None,
    seen: Seen | None = None,
) -> list[dict[str, Any]]:
    """The metrics of a split under each scenario, the same on every worker.

    `reader` reads this worker's part; all workers call this together. Beyond `limit` rows over all scenarios the first
    worker spills to `spill_folder`.
    """
    with ExitStack() as stack:
        held = [
            stack.enter_context(MetricAccumulator(spill_folder, max(1, limit // len(scenarios)))) for _ in scenarios
        ]
        for part in scored(model, reader, scenarios, seen):
            if part is not None:
                for metrics, logits, counts in zip(held, part.logits, part.counts, strict=True):
                    user = part.user[counts] if part.user is not None else None
                    metrics.update(logits[counts], part.label[counts], part.weight[counts], user)
            advance()
        first = dist.get_rank() == 0
        results: list[Any] = [[metrics.compute() for metrics in held] if first else None]
    dist.broadcast_object_list(results, src=0)
    named = ({"scenario": scenario.name, "missing": scenario.share} for scenario in scenarios)
    return [{**name, **metrics} for name, metrics in zip(named, results[0], strict=True)]


def joined(parts: Sequence[Scored]) -> Scored:
    """The samples of all parts, in their order."""
    logits, counts = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("logits", "counts"))
    label, weight = (np.concatenate([getattr(part, name) for part in parts]) for name in ("label", "weight"))
    users = [part.user for part in parts if part.user is not None]
    return Scored(logits, counts, label, weight, np.concatenate(users) if users else None)


def scored(
    model: Recommender | Scorer, reader: EvaluationReader, scenarios: Sequence[Scenario], seen: Seen | None = None
) -> Iterator[Scored | None]:
    """Batch by batch the scores of all workers, on the first one; None on the others.

    Tables are read once for all scenarios. `seen` has the fields whose unseen ids a scenario asks for. What is no
    padding is there, whether a scenario counts it or not.
    """
    device, first = next(model.diffusion.parameters()).device, dist.get_rank() == 0
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
            counted = torch.arange(len(batch), device=device) < batch.counted
            counts = [_counts(batch, scenario, seen or {}) for scenario in scenarios]
            columns = [torch.stack(logits, 1), torch.stack(counts, 1), batch.label, batch.weight, batch.user, counted]
            *gathered, kept = (_gather(column, first) for column in columns)
            if not first:
                yield None
                continue
            logit, count, label, weight, user = (column[kept].cpu().numpy() for column in gathered)
            has_users = reader.schema.data.user is not None
            yield Scored(logit.T, count.T, label, weight, user if has_users else None)
    model.train()


def split_samples(
    reader: EvaluationReader, scenarios: Sequence[Scenario], seen: Seen
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Counts [K, R], label, weight and user [R] of a split, read by one worker: what `scored` has beside logits."""
    parts: list[list[np.ndarray]] = []
    for batch in reader.batches():
        counts = torch.stack([_counts(batch, scenario, seen) for scenario in scenarios], 1)
        columns = (counts, batch.label, batch.weight, batch.user)
        parts.append([column[: batch.counted].numpy() for column in columns])
    count, label, weight, user = (np.concatenate(column) for column in zip(*parts, strict=True))
    return count.T, label, weight, user if reader.schema.data.user is not None else None


def _counts(batch: Batch, scenario: Scenario, seen: Seen) -> torch.Tensor:
    """Which samples [B] are the scenario's: all, or those with a new id."""
    if scenario.unseen is None:
        return torch.ones_like(batch.label, dtype=torch.bool)
    ids = batch.ids[scenario.unseen]
    known = torch.from_numpy(seen[scenario.unseen]).to(batch.label.device)
    new = torch.zeros_like(batch.label, dtype=torch.bool)
    new[ids.lengths() == 1] = ~torch.isin(ids.values(), known)
    return new


def _gather(column: torch.Tensor, first: bool) -> torch.Tensor:
    """The column of all workers, in their order, on the first one; batches have equal sizes on all workers."""
    if dist.get_world_size() == 1:
        return column
    column = column.contiguous()
    parts = [torch.empty_like(column) for _ in range(dist.get_world_size())] if first else None
    dist.gather(column, parts, dst=0)
    return torch.cat(parts) if parts else column
