"""Measure the steps between two lines of the log: mean losses over all workers, speed, and time spent waiting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.base import gather_all
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.fit.plan_check import memory_in_use


class Meter:
    """Measurements of the steps between two lines of the log.

    `steps` is the number of steps of the whole run, `progress` the progress at the start of this session.
    """

    def __init__(self, reader: TrainingReader, device: torch.device, steps: int, progress: Progress) -> None:
        self._reader, self._device, self._steps = reader, device, steps
        self.step_seconds: list[float] = []
        """Mean step time of each interval in seconds"""
        self._sums: dict[str, torch.Tensor] = {}
        self._checksums: deque[int] = deque()  # of batches whose steps have not ended yet
        self._restart(progress.step)
        self._counted = progress.counted_steps
        self._checksum = progress.row_checksum if dist.get_rank() == 0 else 0
        self._sums = {
            name: torch.tensor(mean * self._counted, device=device) for name, mean in progress.mean_losses.items()
        }

    def _restart(self, step: int) -> None:
        self._sums = {}
        self._counted = self._checksum = 0  # without skipped steps
        self._data_wait = 0.0
        self._first_step, self._since = step, time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and measure the time that training waits for them."""
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self._data_wait += time.perf_counter() - start
            self._checksums.append(batch.row_checksum)
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block from the interval."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def skip(self) -> None:
        """Record that the step of the oldest unfinished batch was bad and changed no parameter."""
        self._checksums.popleft()

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Record the losses of the step of the oldest unfinished batch."""
        self._checksum += self._checksums.popleft()
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()
        self._counted += 1

    def interval(self) -> dict[str, Any]:
        """Return values for `mean_losses`, `counted_steps` and `row_checksum` of a `Progress`. A collective call."""
        checksum = sum(gather_all(self._checksum)) % 2**64
        return {"mean_losses": self._mean_losses(), "counted_steps": self._counted, "row_checksum": checksum}

    def _mean_losses(self) -> dict[str, float]:
        """Return the means of the losses over all workers; an empty dict if every step was skipped."""
        if not self._counted:
            return {}
        sums = torch.stack(list(self._sums.values()))
        dist.all_reduce(sums)
        means = (sums / (self._counted * dist.get_world_size())).tolist()
        return dict(zip(self._sums, means, strict=True))

    def record(self, step: int, peer_seconds: float) -> dict[str, Any]:
        """Return the log record of the interval that ends at `step`, and start the next interval. A collective call.

        `peer_seconds` is the time that this worker waited for the other workers. In the record, `ranks` has for each
        worker the share of time waiting for data (`data_wait`), the share waiting for other workers (`peer_wait`), and
        its memory in bytes. `row_checksum` is the checksum of the training rows, see `sample_order.row_checksums`.
        """
        elapsed = time.perf_counter() - self._since
        usage = {
            "data_wait": self._data_wait / elapsed,
            "peer_wait": peer_seconds / elapsed,
            "memory": memory_in_use(self._device),
        }
        ranks, checksums = zip(*gather_all((usage, self._checksum)), strict=True)
        losses = self._mean_losses()
        seconds = elapsed / (step - self._first_step)
        self.step_seconds.append(seconds)
        self._restart(step)
        return {
            "step": step,
            "epoch": self._reader.position(step - 1).epoch,
            "samples": step * self._reader.batch_size,
            "samples_per_second": self._reader.batch_size / seconds,
            "data_wait": sum(rank["data_wait"] for rank in ranks) / len(ranks),
            "seconds_left": seconds * (self._steps - step),
            **losses,
            "row_checksum": f"{sum(checksums) % 2**64:016x}",
            "ranks": ranks,
        }
