"""What the log says of the steps since its last line: means over all workers, the rate, and what data took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.datasets.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.trainer.checkpoint import Standing


class Meter:
    """The steps of an interval between two lines of the log, of `steps` in all, after those that `standing` counts."""

    def __init__(self, reader: TrainingReader, device: torch.device, steps: int, standing: Standing) -> None:
        self._reader, self._device, self._steps = reader, device, steps
        self.step_seconds: list[float] = []
        """Of a step, the mean of each interval"""
        self._sums: dict[str, torch.Tensor] = {}
        self._restart(standing.step)
        self._counted = standing.counted
        self._sums = {name: torch.tensor(mean * self._counted, device=device) for name, mean in standing.means.items()}

    def _restart(self, step: int) -> None:
        self._sums = {}
        self._counted = 0  # without the steps that were skipped
        self._waited = 0.0
        self._first, self._since = step, time.perf_counter()

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time that each lets wait for it is counted."""
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - start
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that the rate does not count."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()
        self._counted += 1

    def state(self) -> dict[str, Any]:
        """`means` and `counted` of a Standing. A collective call."""
        return {"means": self._reduced([])[0] if self._counted else {}, "counted": self._counted}

    def _reduced(self, values: list[float]) -> tuple[dict[str, float], list[float]]:
        """The means of the losses, and those of each worker's `values`, in one collective."""
        shared = torch.stack([*self._sums.values(), *torch.tensor(values, device=self._device)])
        dist.all_reduce(shared)
        found = (shared / dist.get_world_size()).tolist()
        losses = {name: value / self._counted for name, value in zip(self._sums, found, strict=False)}
        return losses, found[len(losses) :]

    def record(self, step: int) -> dict[str, Any]:
        """The record of the interval that ends at `step`; the next one begins. A collective call."""
        elapsed = time.perf_counter() - self._since
        losses, (waited,) = self._reduced([self._waited / elapsed])
        seconds = elapsed / (step - self._first)
        self.step_seconds.append(seconds)
        self._restart(step)
        return {
            "step": step,
            "epoch": self._reader.position(step - 1).epoch,
            "samples": step * self._reader.batch_size,
            "samples_per_second": self._reader.batch_size / seconds,
            "data_wait": waited,
            "seconds_left": seconds * (self._steps - step),
            **losses,
        }
