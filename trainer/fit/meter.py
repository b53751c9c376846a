"""What the log says of the steps since its last line: means over all workers, the rate, and what data took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.trainer.checkpoints.state import Standing
from asymdiffrec.trainer.fit.plan_check import held

T = TypeVar("T")


class Meter:
    """The steps of an interval between two lines of the log, of `steps` in all, after those that `standing` counts."""

    def __init__(self, reader: TrainingReader, device: torch.device, steps: int, standing: Standing) -> None:
        self._reader, self._device, self._steps = reader, device, steps
        self.step_seconds: list[float] = []
        """Of a step, the mean of each interval"""
        self._sums: dict[str, torch.Tensor] = {}
        self._ledgers: deque[int] = deque()  # of the batches that are read and whose steps have not ended
        self._restart(standing.step)
        self._counted = standing.counted
        self._ledger = standing.ledger if dist.get_rank() == 0 else 0
        self._sums = {name: torch.tensor(mean * self._counted, device=device) for name, mean in standing.means.items()}

    def _restart(self, step: int) -> None:
        self._sums = {}
        self._counted = self._ledger = 0  # without the steps that were skipped
        self._waited = 0.0
        self._first, self._since = step, time.perf_counter()

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time that each lets wait for it is counted."""
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - start
            self._ledgers.append(batch.ledger)
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that the rate does not count."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def skip(self) -> None:
        """The step of the next batch changed nothing."""
        self._ledgers.popleft()

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """The step of the next batch has these losses."""
        self._ledger += self._ledgers.popleft()
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()
        self._counted += 1

    def state(self) -> dict[str, Any]:
        """`means`, `counted` and `ledger` of a Standing. A collective call."""
        return {"means": self._means(), "counted": self._counted, "ledger": sum(_from_all(self._ledger)) % 2**64}

    def _means(self) -> dict[str, float]:
        """Of the losses, over all workers; none where every step was skipped."""
        if not self._counted:
            return {}
        shared = torch.stack(list(self._sums.values()))
        dist.all_reduce(shared)
        means = (shared / (self._counted * dist.get_world_size())).tolist()
        return dict(zip(self._sums, means, strict=True))

    def record(self, step: int, peer_seconds: float) -> dict[str, Any]:
        """The record of the interval that ends at `step`, of which this worker waited `peer_seconds` for the others.

        `ranks` has for each worker the shares of its time that it waited for data and for the others, and the memory
        that it holds; `rows` is the ledger of the rows learned from. The next interval begins. A collective call.
        """
        elapsed = time.perf_counter() - self._since
        own = {"data_wait": self._waited / elapsed, "peer_wait": peer_seconds / elapsed, "memory": held(self._device)}
        ranks, ledgers = zip(*_from_all((own, self._ledger)), strict=True)
        losses = self._means()
        seconds = elapsed / (step - self._first)
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
            "rows": f"{sum(ledgers) % 2**64:016x}",
            "ranks": ranks,
        }


def _from_all(own: T) -> list[T]:
    """What each worker has. A collective call."""
    found = [own] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
