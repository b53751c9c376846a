"""Asynchronous saving: checkpoints are written from a copy in memory while training continues."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from asymdiffrec.trainer.checkpoints import tensors as checkpoint
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.job import CheckpointsConfig
from asymdiffrec.trainer.train_state import TrainState


class Saver:
    """Writer of checkpoints. With `background`, training only waits for the copy of the state, not for the write.

    Only one save runs at a time. All workers call `save` and `finish` together and get the same outcome.

        with Saver(checkpoints, train_state, run.documents(), job.train.checkpoints, progress) as saver:
            ...                         # train
            failed = saver.finish()     # wait for the previous save
            saver.save(progress)
            ...                         # continue training while the checkpoint is written
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        train_state: TrainState,
        documents: Mapping[str, str],
        settings: CheckpointsConfig,
        saved: Progress,
    ) -> None:
        """`documents`: files written with each checkpoint, {name: text}. `saved`: progress of the newest checkpoint."""
        self._checkpoints = checkpoints
        self._train_state = train_state
        self._documents = documents
        self._settings = settings
        self._snapshot = checkpoint.Snapshot(train_state) if settings.background else None
        timeout = timedelta(seconds=train_state.job.cluster.timeout_seconds)
        # A separate process group for saving, because training uses the default group at the same time.
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[Progress, Future[None]] | None = None
        self.saved = saved
        """Progress of the newest complete checkpoint"""
        self.failure = ""
        """Error of the last save that failed; empty if no save has failed"""

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=True)
        dist.destroy_process_group(self._group)

    def is_due(self, step: int, time_is_up: bool) -> bool:
        """Return whether a checkpoint is due after `step` steps. `time_is_up`: a timed checkpoint is due."""
        return time_is_up or bool(self._settings.steps and step % self._settings.steps == 0)

    def save(self, progress: Progress) -> None:
        """Start saving the current state. If a save was started before, call `finish` first."""
        assert self._writing is None
        state = self._snapshot.take() if self._snapshot else checkpoint.state(self._train_state)
        self._writing = progress, self._thread.submit(self._write, state, progress)
        if not self._snapshot:
            wait([self._writing[1]])

    def finish(self) -> Progress | None:
        """Wait for the running save. Return the progress of the save if it failed, else None."""
        if self._writing is None:
            return None
        (progress, writing), self._writing = self._writing, None
        try:
            writing.result()
        except CheckpointError as error:
            self.failure = str(error)
            return progress
        self.saved = progress
        return None

    def _write(self, state: dict[str, Any], progress: Progress) -> None:
        self._checkpoints.write(state, progress, self._documents, self._group)
        if dist.get_rank() == 0:
            self._checkpoints.prune(self._settings.keep, progress.best_step)
