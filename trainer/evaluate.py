"""Evaluation of a sharded model on one split: every worker scores its rows, the first one computes the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.datasets.reader import EvaluationReader
from asymdiffrec.diffusion.forward import ForwardProcess
from asymdiffrec.diffusion.model import Recommender
from asymdiffrec.trainer.metrics import Metrics

SEED = 0
"""Of the fields that are dropped: one for all runs, so that all are judged on the same samples."""


def evaluate(
    model: Recommender,
    reader: EvaluationReader,
    missing: float,
    spill_folder: Path,
    limit: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The metrics of a split, the same on every worker.

    Each present field is dropped with probability `missing`, as a function of the row and the field alone. `reader`
    reads this worker's part; all workers call this together. Beyond `limit` rows the first spills to `spill_folder`.
    """
    device = next(model.diffusion.parameters()).device
    first = dist.get_rank() == 0
    process = ForwardProcess.at_rate(model.diffusion.widths, missing, SEED).to(device) if missing else None
    model.eval()
    with Metrics(spill_folder, limit) as metrics, torch.no_grad():
        for batch in reader.batches():
            batch = batch.to(device)
            columns = [model.score(batch, process), batch.label, batch.weight, batch.user]
            counted = torch.arange(len(batch), device=device) < batch.counted
            gathered = [_gather(column, first) for column in (*columns, counted)]
            if first:
                *values, keep = gathered
                logit, label, weight, user = (value[keep].cpu().numpy() for value in values)
                metrics.update(logit, label, weight, user if reader.schema.data.user else None)
            advance()
        result: list[Any] = [metrics.compute() if first else None]
    model.train()
    dist.broadcast_object_list(result, src=0)
    return {"missing": missing, **result[0]}


def _gather(column: torch.Tensor, first: bool) -> torch.Tensor:
    """The column of all workers, in their order, on the first one; batches have equal sizes on all workers."""
    if dist.get_world_size() == 1:
        return column
    column = column.contiguous()
    parts = [torch.empty_like(column) for _ in range(dist.get_world_size())] if first else None
    dist.gather(column, parts, dst=0)
    return torch.cat(parts) if parts else column
