"""The decision that all workers take together in each step, before the backward pass changes tables."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.base import gather_all
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.job import TrainConfig

MAX_BAD_STEPS = 10
"""Number of bad steps in a row after which training ends, because skipping more steps would not help"""


@dataclass(frozen=True)
class Decision:
    """The common decision of all workers in a step. A value is True if it is True on at least one worker."""

    is_bad: bool = False
    """The loss is not finite, or above `train.max_loss`: the step changes no parameter"""
    stop: bool = False
    """The user asked for a stop"""
    leave: bool = False
    """A host is about to be removed from the cluster"""
    save: bool = False
    """A timed checkpoint is due"""


class StepConsensus:
    """Agreement of all workers, by one collective call in each step, on whether to update, stop, leave or save.

    A step is bad if its loss is not finite or above `train.max_loss` on any worker. A bad step changes no parameter;
    `train.on_nan` says whether it is skipped or ends training. The clock of rank 0 decides when a timed checkpoint is
    due.

    is_stopping: returns whether this worker received a request to stop.
    is_leaving: returns whether this worker was told that a host will be removed from the cluster.
    """

    def __init__(
        self,
        device: torch.device,
        settings: TrainConfig,
        reader: TrainingReader,
        is_stopping: Callable[[], bool],
        is_leaving: Callable[[], bool],
    ) -> None:
        self._device, self._settings, self._reader = device, settings, reader
        self._is_stopping, self._is_leaving = is_stopping, is_leaving
        minutes = settings.checkpoints.minutes
        self._seconds_between_saves = 60 * minutes if minutes and dist.get_rank() == 0 else math.inf
        self._bad_in_a_row, self._waited = 0, 0.0
        self.decision = Decision()
        """The decision of the last step"""
        self.bad_step: dict[str, Any] = {}
        """The log record of the last bad step"""
        self.begin(0)
        self.saved()

    def begin(self, step: int) -> None:
        """Call before training step number `step` (0-based)."""
        self.step = step

    def take_waited(self) -> float:
        """Return the seconds that this worker has waited for slower workers since `take_waited` was last called."""
        waited, self._waited = self._waited, 0.0
        return waited

    def saved(self) -> None:
        """Restart the clock that decides when the next checkpoint is due."""
        self._saved_at = time.monotonic()

    def should_update(self, loss: torch.Tensor) -> bool:
        """Return whether the backward pass may run, and set `decision`. A collective call.

        Raises TrainingError on all workers if a bad step must not be skipped.
        """
        start = time.perf_counter()
        is_bad = ~(loss.detach().abs() <= self._settings.max_loss)
        save_is_due = time.monotonic() - self._saved_at >= self._seconds_between_saves
        answers = torch.tensor([self._is_stopping(), self._is_leaving(), save_is_due], device=self._device)
        votes = torch.cat([is_bad.view(1), answers]).to(torch.uint8)
        if dist.get_world_size() > 1:
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        self.decision = Decision(*map(bool, votes.tolist()))
        self._waited += time.perf_counter() - start
        if not self.decision.is_bad:
            self._bad_in_a_row = 0
            return True
        self._handle_bad_step(float(loss.detach()))
        return False

    def _handle_bad_step(self, loss: float) -> None:
        losses = gather_all(loss)
        self._bad_in_a_row += 1
        position, batch_size = self._reader.position(self.step), self._reader.batch_size
        bad = {rank: loss for rank, loss in enumerate(losses) if not abs(loss) <= self._settings.max_loss}
        first = self.step * batch_size
        self.bad_step = {
            "bad_losses": {str(rank): repr(loss) for rank, loss in bad.items()},
            "position": [position.epoch, position.step],
            "bad_samples": [first, first + batch_size - 1],
        }
        if self._settings.on_nan == "skip" and self._bad_in_a_row < MAX_BAD_STEPS:
            return
        rank, value = next(iter(bad.items()))
        in_a_row = f", the {MAX_BAD_STEPS}th bad step in a row" if self._bad_in_a_row >= MAX_BAD_STEPS else ""
        raise TrainingError(
            f"loss is {value:g} at step {self.step + 1} on worker {rank}{in_a_row} (epoch {position.epoch + 1}, batch "
            f"{position.step} of the epoch, samples {first:,} to {first + batch_size - 1:,} of the run); the step "
            "changed no parameter, and the last checkpoint is intact. Lower train.learning_rate or "
            "tables.optimizer.learning_rate, look at these samples (asymdiffrec samples RUN "
            f"{self.step + 1} OUT), or set train.on_nan=skip"
        )
