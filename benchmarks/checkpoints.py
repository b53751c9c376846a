"""Measure the cost of a checkpoint.

The time that training waits for a checkpoint is compared with the time to copy the same number of bytes in memory. The
speed of writing a checkpoint to the disk is compared with the speed of writing a plain file of the same size.
"""

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
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.checkpoints.saver import Saver
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.checkpoints.tensors import state
from asymdiffrec.trainer.job import CheckpointsConfig, Job
from asymdiffrec.trainer.train_state import TrainState, build_train_state
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result

DIM, TABLES = 64, 4
GIB = 2**30
WRITE_BYTES = 64 << 20
"""Number of bytes in one write to the plain file"""
MAX_STALL = 1.5
"""Goal: largest ratio of the time that training waits to the time of the copy"""


def train_state_of(size: int) -> TrainState:
    """Build a model on this process. Its tables and their optimizer state take `size` bytes together."""
    rows = size // (2 * 4 * DIM * TABLES)
    fields = {f"c{number}": {"type": "id", "num_embeddings": rows} for number in range(TABLES)}
    job = Job.model_validate({"name": "checkpoint", "fields": fields, "tables": {"embedding_dim": DIM}})
    return build_train_state(job, job.to_schema(), torch.device("cpu"))


def bytes_of(train_state: TrainState) -> int:
    """Return the size of a checkpoint of this process in bytes."""
    tensors = (tensor for part in state(train_state).values() for tensor in part.values())
    local = (tensor.local_tensor() if hasattr(tensor, "local_tensor") else tensor for tensor in tensors)
    return sum(tensor.nbytes for tensor in local)


def plain_file(path: Path, content: torch.Tensor) -> None:
    """Write bytes to a file and flush them to the disk."""
    view = memoryview(content.numpy())  # type: ignore[arg-type]  # an array is a buffer
    with path.open("wb") as file:
        for start in range(0, len(view), WRITE_BYTES):
            file.write(view[start : start + WRITE_BYTES])
        file.flush()
        os.fsync(file.fileno())


class Saves:
    """A series of checkpoints. Each is saved in two parts: training waits for the first part only."""

    def __init__(self, saver: Saver) -> None:
        self._saver, self._step = saver, 0

    def begin(self) -> None:
        """Run the part of a save that training waits for."""
        self._step += 1
        self._saver.save(Progress(step=self._step))

    def end(self) -> None:
        """Wait until the checkpoint is written."""
        failed = self._saver.finish()
        assert failed is None, self._saver.failure


def stalls(saves: Saves, copy: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return two medians in seconds: the time that a save stops training, and the time of a copy in memory.

    No checkpoint is written during the copy.
    """
    durations: list[float] = []

    def stall() -> None:
        start = time.perf_counter()
        saves.begin()
        durations.append(time.perf_counter() - start)

    copies: list[float] = []
    for _ in range(rounds + 1):
        stall()
        saves.end()
        start = time.perf_counter()
        copy()
        copies.append(time.perf_counter() - start)
    return _median(durations[1:]), _median(copies[1:])


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    options = arguments(__doc__ or "")
    silence_torchrec_warnings()
    size, rounds = (GIB // 64, 1) if options.quick else (2 * GIB, 5)
    with (
        tempfile.TemporaryDirectory(prefix="asymdiffrec-") as name,
        process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True),
    ):
        folder, train_state = Path(name), train_state_of(size)
        checkpoint_bytes = bytes_of(train_state)
        source, target = (torch.ones(checkpoint_bytes, dtype=torch.uint8) for _ in range(2))
        settings = CheckpointsConfig(keep=1)
        with Saver(Checkpoints(str(folder / "saved")), train_state, {}, settings, Progress()) as saver:
            saves = Saves(saver)
            stalled, copied = stalls(saves, partial(target.copy_, source), rounds)

            def save() -> None:
                saves.begin()
                saves.end()

            saved, plain = alternate(save, partial(plain_file, folder / "plain", source), rounds)
    goal, holds = f"at most {MAX_STALL:g}", stalled <= MAX_STALL * copied
    gib = checkpoint_bytes / GIB
    show(
        [
            Result(f"training waits, {gib:.2f} GiB", stalled, "s", "copy in memory", copied, goal, holds),
            Result(f"write a checkpoint, {gib:.2f} GiB", gib / saved, "GiB/s", "plain file", gib / plain),
        ],
        options,
    )


if __name__ == "__main__":
    main()
