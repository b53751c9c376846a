"""The checkpoints of a run: which there are, which are good, and how one is written beside the training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import timedelta
from pickle import UnpicklingError
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from asymdiffrec.cluster.errors import last_line
from asymdiffrec.datasets.files.locations import part_of
from asymdiffrec.trainer.build import TrainState
from asymdiffrec.trainer.checkpoints import state as checkpoint
from asymdiffrec.trainer.checkpoints.blocks import Block, BlockPlanner
from asymdiffrec.trainer.checkpoints.state import Snapshot, Standing
from asymdiffrec.trainer.checkpoints.storage import Folder
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.job import CheckpointsConfig

MANIFEST = "manifest.json"
"""Written last: a folder without it is no checkpoint. Has the sums of the other files, and the standing."""


class Checkpoints:
    """The checkpoints in a folder, which is a path or a URI, each in a folder step-STEP."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._folder = Folder(location)

    def folder(self, step: int) -> Folder:
        return Folder(part_of(self._location, f"step-{step}"))

    def steps(self) -> list[int]:
        """Of the complete ones, ascending."""
        found = [int(name.removeprefix("step-")) for name in self._folder.folders() if name.startswith("step-")]
        return sorted(step for step in found if self._is_complete(step))

    def _is_complete(self, step: int) -> bool:
        folder = self.folder(step)
        return folder.exists(f"{folder.path}/{MANIFEST}")

    def standing(self, step: int) -> Standing:
        return Standing(**self._manifest(step)["standing"])

    def _manifest(self, step: int) -> dict[str, Any]:
        folder = self.folder(step)
        try:
            manifest: dict[str, Any] = json.loads(folder.read(MANIFEST))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder.location}: cannot be loaded: {last_line(error)}") from error
        return manifest

    def best(self) -> int | None:
        """The step that a run is judged by: the best on validation, or the newest where none was validated."""
        steps = self.steps()
        if not steps:
            return None
        newest = self.standing(steps[-1])
        return newest.best_step if newest.best_value is not None else steps[-1]

    def damage(self, step: int) -> str:
        """What is wrong with the files of a checkpoint, in a line; empty where nothing is.

        The workers of the process group share the reading and are told the same.
        """
        folder, ranks, rank = self.folder(step), dist.get_world_size(), dist.get_rank()
        try:
            sums = self._manifest(step)["files"]
            own = {name: sums[name] for name in sorted(sums)[rank::ranks]}
            wrong = [f"{name} {how}" for name, how in folder.damaged(own).items()]
        except (CheckpointError, OSError, KeyError) as error:
            wrong = [last_line(error)]
        everywhere: list[list[str]] = [[]] * ranks
        dist.all_gather_object(everywhere, wrong)
        found = [line for lines in everywhere for line in lines]
        return f"{folder.location}: {found[0]}" if found else ""

    def newest_good(self, tell: Callable[[str], None]) -> int | None:
        """The newest step whose files are as they were written; `tell` hears of the others. All workers call this."""
        steps = [self.steps()]
        dist.broadcast_object_list(steps, src=0)
        for step in reversed(steps[0]):
            damage = self.damage(step)
            if not damage:
                return step
            tell(f"{damage}; the one before it is taken")
        return None

    def load(self, step: int, train_state: TrainState) -> Standing:
        """Fill a model and its optimizers, under whatever plan; all workers call this together.

        Raises CheckpointError where the checkpoint cannot be read or does not fit the model.
        """
        self._load(step, checkpoint.state(train_state))
        train_state.tables_optimizer.set_optimizer_step(step)
        return self.standing(step)

    def load_weights(self, step: int, train_state: TrainState) -> None:
        """Fill a model alone, whatever optimizers it has, for evaluation and prediction; otherwise as `load`."""
        self._load(step, checkpoint.weights(train_state))

    def read(self, step: int, blocks: Sequence[Block]) -> None:
        """Fill this worker's blocks; all workers call this together. Otherwise as `load`."""
        self._load(step, {}, BlockPlanner(blocks))

    def _load(self, step: int, state: dict[str, Any], planner: dcp.LoadPlanner | None = None) -> None:
        folder = self.folder(step)
        try:
            dcp.load(state, storage_reader=folder.reader(), planner=planner)
        except (dcp.CheckpointException, OSError) as error:
            raise CheckpointError(f"{folder.location}: cannot be loaded: {last_line(error)}") from error

    def sizes(self, step: int) -> dict[str, list[int]]:
        """The size of each tensor of a checkpoint, by its name: `tables.TABLE.weight`, `dense.PARAMETER` and so on.

        Raises CheckpointError where the checkpoint cannot be read.
        """
        folder = self.folder(step)
        try:
            stored = folder.reader().read_metadata().state_dict_metadata
        except (OSError, ValueError, EOFError, UnpicklingError) as error:
            raise CheckpointError(f"{folder.location}: cannot be loaded: {last_line(error)}") from error
        return {name: list(one.size) for name, one in stored.items() if isinstance(one, TensorStorageMetadata)}

    def write(
        self, state: dict[str, Any], standing: Standing, documents: Mapping[str, str], group: dist.ProcessGroup | None
    ) -> None:
        """Write a checkpoint with all workers of `group`, and with it `documents`, texts by the names of their files.

        Raises CheckpointError on every worker where it cannot be written, as on a full disk; there is none then.
        """
        folder, first = self.folder(standing.step), dist.get_rank(group) == 0
        if first and folder.exists(folder.path):  # it is no longer complete once a file of it is written anew
            self._folder.remove(f"step-{standing.step}")
        dist.barrier(group)
        try:
            dcp.save(state, storage_writer=folder.writer(), process_group=group)
        except (dcp.CheckpointException, OSError) as error:
            raise CheckpointError(f"{folder.location}: cannot be written: {last_line(error)}") from error
        sums: list[dict[str, tuple[int, str]]] = [{}] * dist.get_world_size(group)
        dist.all_gather_object(sums, folder.sums, group=group)
        failed: list[str] = [""]
        if first:
            try:
                for name, text in documents.items():
                    folder.write(name, text.encode())
                files = {name: one for part in (*sums, folder.sums) for name, one in part.items()}
                folder.write(MANIFEST, json.dumps({"standing": asdict(standing), "files": files}, indent=1).encode())
            except OSError as error:
                failed = [last_line(error)]
        dist.broadcast_object_list(failed, src=0, group=group)
        if failed[0]:
            raise CheckpointError(f"{folder.location}: cannot be written: {failed[0]}")

    def prune(self, keep: set[int]) -> None:
        """Delete the checkpoints of all other steps, and what an interrupted save left behind."""
        for name in self._folder.folders():
            if name.startswith("step-") and name not in {f"step-{step}" for step in keep}:
                self._folder.remove(name)


class Saver:
    """Writes checkpoints while training goes on: a save stops it for as long as a copy in memory takes.

    One is written at a time. All workers call `save` and `finish` together, and are told the same.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        train_state: TrainState,
        documents: Mapping[str, str],
        settings: CheckpointsConfig,
        saved: Standing,
    ) -> None:
        """`documents` are written with each checkpoint; `saved` is the standing of the last one there is."""
        self._checkpoints, self._trainee, self._documents, self._settings = (
            checkpoints,
            train_state,
            documents,
            settings,
        )
        self._snapshot = Snapshot(train_state) if settings.background else None
        patience = timedelta(seconds=train_state.job.cluster.timeout_seconds)
        # A group of its own: the default one is the training's, which goes on.
        self._group = dist.new_group(backend="gloo", timeout=patience)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[Standing, Future[None]] | None = None
        self.saved = saved
        """Of the newest checkpoint that is complete"""
        self.failure = ""
        """Why the last one that is not complete could not be written"""

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=True)
        dist.destroy_process_group(self._group)

    def is_due(self, step: int, in_time: bool) -> bool:
        """Whether a checkpoint is due after a step, or `in_time`, as the clock says."""
        return in_time or bool(self._settings.steps and step % self._settings.steps == 0)

    def save(self, standing: Standing) -> None:
        """Begin to write the state as it is now; `finish` was called since the last one was begun."""
        assert self._writing is None
        state = self._snapshot.take() if self._snapshot else checkpoint.state(self._trainee)
        self._writing = standing, self._thread.submit(self._write, state, standing)
        if not self._snapshot:
            wait([self._writing[1]])

    def finish(self) -> Standing | None:
        """Wait for what is being written; its standing, where it could not be."""
        if self._writing is None:
            return None
        (standing, writing), self._writing = self._writing, None
        try:
            writing.result()
        except CheckpointError as error:
            self.failure = str(error)
            return standing
        self.saved = standing
        return None

    def _write(self, state: dict[str, Any], standing: Standing) -> None:
        self._checkpoints.write(state, standing, self._documents, self._group)
        if dist.get_rank() == 0:
            newest = self._checkpoints.steps()[-self._settings.keep :]
            self._checkpoints.prune({*newest, standing.best_step})
