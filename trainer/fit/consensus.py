"""What the workers agree on in the middle of a step, before the backward pass changes tables."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.trainer.errors import TrainingError
from asymdiffrec.trainer.job import TrainConfig

HOPELESS = 10
"""Steps in a row whose loss is lost, after which skipping them is no help"""


@dataclass(frozen=True)
class Agreed:
    """What holds on one worker at least, and so for all of them."""

    is_lost: bool = False
    """The loss is not finite, or beyond the limit"""
    stop: bool = False
    leave: bool = False
    save: bool = False


class LossGuard:
    """Asks all workers in each step, in one collective call, for what each has seen on its own.

    A step whose loss is lost on any of them changes no parameter: it ends the training, or is skipped. `stopping` and
    `leaving` say whether this worker was asked to stop, or is to end soon; the first worker's clock says when a
    checkpoint is due.
    """

    def __init__(
        self,
        device: torch.device,
        settings: TrainConfig,
        reader: TrainingReader,
        stopping: Callable[[], bool],
        leaving: Callable[[], bool],
    ) -> None:
        self._device, self._settings, self._reader = device, settings, reader
        self._stopping, self._leaving = stopping, leaving
        minutes = settings.checkpoints.minutes
        self._seconds = 60 * minutes if minutes and dist.get_rank() == 0 else math.inf
        self._in_a_row, self._waited = 0, 0.0
        self.agreed = Agreed()
        self.lost: dict[str, Any] = {}
        """Of the last step whose loss was lost: what the log says of it"""
        self.begin(0)
        self.saved()

    def begin(self, step: int) -> None:
        """The step after `step` ones begins."""
        self.step = step

    def take_waited(self) -> float:
        """Seconds since the last call that this worker took to hear of the others: who is quick waits for them here."""
        waited, self._waited = self._waited, 0.0
        return waited

    def saved(self) -> None:
        """Count the time to the next checkpoint from now."""
        self._since = time.monotonic()

    def may_learn(self, loss: torch.Tensor) -> bool:
        """Whether the backward pass of the step may begin; what was agreed is in `agreed`. A collective call.

        Raises TrainingError, on all workers, where it may not and the step is not to be skipped.
        """
        start = time.perf_counter()
        lost = ~(loss.detach().abs() <= self._settings.max_loss)
        asked = [self._stopping(), self._leaving(), time.monotonic() - self._since >= self._seconds]
        seen = torch.cat([lost.view(1), torch.tensor(asked, device=self._device)]).to(torch.uint8)
        if dist.get_world_size() > 1:
            dist.all_reduce(seen, dist.ReduceOp.MAX)
        self.agreed = Agreed(*map(bool, seen.tolist()))
        self._waited += time.perf_counter() - start
        if not self.agreed.is_lost:
            self._in_a_row = 0
            return True
        self._tell(float(loss.detach()))
        return False

    def _tell(self, loss: float) -> None:
        losses: list[float] = [0.0] * dist.get_world_size()
        dist.all_gather_object(losses, loss)
        self._in_a_row += 1
        position, size = self._reader.position(self.step), self._reader.batch_size
        wrong = {rank: one for rank, one in enumerate(losses) if not abs(one) <= self._settings.max_loss}
        first = self.step * size
        self.lost = {
            "lost": {str(rank): repr(one) for rank, one in wrong.items()},
            "position": [position.epoch, position.step],
            "lost_samples": [first, first + size - 1],
        }
        if self._settings.on_nan == "skip" and self._in_a_row < HOPELESS:
            return
        rank, value = next(iter(wrong.items()))
        row = f", the {HOPELESS}th in a row," if self._in_a_row >= HOPELESS else ""
        raise TrainingError(
            f"the loss of step {self.step + 1}{row} is {value:g} on worker {rank} (epoch {position.epoch + 1}, batch "
            f"{position.step} of it, samples {first:,} to {first + size - 1:,} of the run); it changed no parameter, "
            "and the last checkpoint is unharmed. Lower train.learning_rate or tables.optimizer.learning_rate, "
            f"look at these samples (asymdiffrec samples RUN {self.step + 1} OUT), or set train.on_nan=skip"
        )
