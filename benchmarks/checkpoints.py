"""What a checkpoint costs: how long training stands still for one, beside a copy of the same bytes in memory; and how
fast it reaches the disk, beside a plain file of as many bytes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.build import TrainState, build_train_state
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.checkpoints.saver import Saver
from asymdiffrec.trainer.checkpoints.state import state
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.job import CheckpointsConfig, Job
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result

DIM, TABLES = 64, 4
GIB = 2**30
PIECE = 64 << 20
"""Bytes of one write to the plain file"""
LIMIT = 1.5
"""Of the stall over the copy, as asked"""


def train_state_of(size: int) -> TrainState:
    """A model on this process with so many bytes of tables and of their optimizer's state together."""
    rows = size // (2 * 4 * DIM * TABLES)
    fields = {f"c{place}": {"type": "id", "num_embeddings": rows} for place in range(TABLES)}
    job = Job.model_validate({"name": "checkpoint", "fields": fields, "tables": {"embedding_dim": DIM}})
    return build_train_state(job, job.to_schema(), torch.device("cpu"))


def bytes_of(train_state: TrainState) -> int:
    """That a checkpoint of it has, on this process alone."""
    tensors = (tensor for part in state(train_state).values() for tensor in part.values())
    local = (tensor.local_tensor() if hasattr(tensor, "local_tensor") else tensor for tensor in tensors)
    return sum(tensor.nbytes for tensor in local)


def plain_file(path: Path, content: torch.Tensor) -> None:
    """Write bytes to a file, down to the disk."""
    view = memoryview(content.numpy())  # type: ignore[arg-type]  # an array is a buffer
    with path.open("wb") as file:
        for start in range(0, len(view), PIECE):
            file.write(view[start : start + PIECE])
        file.flush()
        os.fsync(file.fileno())


class Saves:
    """Checkpoints one after the other, of which the time that training would stand still is told apart."""

    def __init__(self, saver: Saver) -> None:
        self._saver, self._step = saver, 0

    def begin(self) -> None:
        self._step += 1
        self._saver.save(Progress(step=self._step))

    def end(self) -> None:
        failed = self._saver.finish()
        assert failed is None, self._saver.failure


def stalls(saves: Saves, copy: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds that a save stops the training for, and of a copy; nothing is written meanwhile."""
    taken: list[float] = []

    def stall() -> None:
        start = time.perf_counter()
        saves.begin()
        taken.append(time.perf_counter() - start)

    copies: list[float] = []
    for _ in range(rounds + 1):
        stall()
        saves.end()
        start = time.perf_counter()
        copy()
        copies.append(time.perf_counter() - start)
    return _median(taken[1:]), _median(copies[1:])


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def main() -> None:
    options = arguments(__doc__ or "")
    silence_torchrec_warnings()
    size, rounds = (GIB // 64, 1) if options.quick else (2 * GIB, 5)
    with (
        tempfile.TemporaryDirectory(prefix="asymdiffrec-") as name,
        process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True),
    ):
        folder, train_state = Path(name), train_state_of(size)
        held = bytes_of(train_state)
        source, target = (torch.ones(held, dtype=torch.uint8) for _ in range(2))
        settings = CheckpointsConfig(keep=1)
        with Saver(Checkpoints(str(folder / "saved")), train_state, {}, settings, Progress()) as saver:
            saves = Saves(saver)
            stalled, copied = stalls(saves, partial(target.copy_, source), rounds)

            def written() -> None:
                saves.begin()
                saves.end()

            saved, plain = alternate(written, partial(plain_file, folder / "plain", source), rounds)
    goal, holds = f"at most {LIMIT:g}", stalled <= LIMIT * copied
    gib = held / GIB
    show(
        [
            Result(f"training stands still, {gib:.2f} GiB", stalled, "s", "copy in memory", copied, goal, holds),
            Result(f"write a checkpoint, {gib:.2f} GiB", gib / saved, "GiB/s", "plain file", gib / plain),
        ],
        options,
    )


if __name__ == "__main__":
    main()
