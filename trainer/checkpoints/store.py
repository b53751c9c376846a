"""The checkpoints of a run: list them, check them for damage, read and write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pickle import UnpicklingError
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from asymdiffrec.base import gather_all
from asymdiffrec.cluster.errors import last_line
from asymdiffrec.datasets.files.locations import join_location
from asymdiffrec.trainer.checkpoints import tensors as checkpoint
from asymdiffrec.trainer.checkpoints.blocks import Block, BlockPlanner
from asymdiffrec.trainer.checkpoints.folder import Folder
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.train_state import TrainState

MANIFEST = "manifest.json"
"""File with the progress and the checksums of the other files. It is written last: a folder without it is incomplete"""


class Checkpoints:
    """The checkpoints in a folder (a path or a URI), each in a subfolder `step-STEP`.

    >>> Checkpoints("runs/clicks/20260101T000000Z/checkpoints").steps()
    []
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._folder = Folder(location)

    def folder(self, step: int) -> Folder:
        """Return the folder of the checkpoint of a step. The folder may not exist."""
        return Folder(join_location(self._location, f"step-{step}"))

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, in ascending order."""
        steps = [int(name.removeprefix("step-")) for name in self._folder.folders() if name.startswith("step-")]
        return sorted(step for step in steps if self._is_complete(step))

    def _is_complete(self, step: int) -> bool:
        folder = self.folder(step)
        return folder.exists(f"{folder.path}/{MANIFEST}")

    def progress(self, step: int) -> Progress:
        """Return the progress stored in a checkpoint. Raises CheckpointError if it cannot be read."""
        return Progress(**self._manifest(step)["progress"])

    def _manifest(self, step: int) -> dict[str, Any]:
        folder = self.folder(step)
        try:
            manifest: dict[str, Any] = json.loads(folder.read(MANIFEST))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder.location}: cannot be loaded: {last_line(error)}") from error
        return manifest

    def best(self) -> int | None:
        """Return the step with the best validation, or the newest step if no step was validated.

        Returns None if no checkpoint exists.
        """
        steps = self.steps()
        if not steps:
            return None
        newest = self.progress(steps[-1])
        return newest.best_step if newest.best_value is not None else steps[-1]

    def damage(self, step: int) -> str:
        """Check the files of a checkpoint and return one line about the first damage, or "" if it is undamaged.

        Each worker reads a part of the files, and all return the same line. A collective call.
        """
        folder = self.folder(step)
        try:
            checksums = self._manifest(step)["files"]
            names = sorted(checksums)[dist.get_rank() :: dist.get_world_size()]
            damages = [
                f"{name} {damage}" for name, damage in folder.damages({name: checksums[name] for name in names}).items()
            ]
        except (CheckpointError, OSError, KeyError) as error:
            damages = [last_line(error)]
        all_damages = [line for lines in gather_all(damages) for line in lines]
        return f"{folder.location}: {all_damages[0]}" if all_damages else ""

    def newest_good(self, report: Callable[[str], None]) -> int | None:
        """Return the step of the newest undamaged checkpoint, or None. A collective call.

        Calls `report` with one line about each damaged checkpoint.
        """
        steps = [self.steps()]
        dist.broadcast_object_list(steps, src=0)
        for step in reversed(steps[0]):
            damage = self.damage(step)
            if not damage:
                return step
            report(f"{damage}; training continues from the previous checkpoint")
        return None

    def load(self, step: int, train_state: TrainState) -> Progress:
        """Load weights and optimizer states, and return the progress. A collective call.

        The sharding plan may differ from the plan under which the checkpoint was written. Raises CheckpointError if the
        checkpoint cannot be read or does not fit the model.
        """
        self._load(step, checkpoint.state(train_state))
        train_state.tables_optimizer.set_optimizer_step(step)
        return self.progress(step)

    def load_weights(self, step: int, train_state: TrainState) -> None:
        """Load only the weights, for evaluation and prediction; optimizers may differ. Otherwise like `load`."""
        self._load(step, checkpoint.weights(train_state))

    def read(self, step: int, blocks: Sequence[Block]) -> None:
        """Read this worker's blocks into their tensors. Otherwise like `load`."""
        self._load(step, {}, BlockPlanner(blocks))

    def _load(self, step: int, state: dict[str, Any], planner: dcp.LoadPlanner | None = None) -> None:
        folder = self.folder(step)
        try:
            dcp.load(state, storage_reader=folder.reader(), planner=planner)
        except (dcp.CheckpointException, OSError) as error:
            raise CheckpointError(f"{folder.location}: cannot be loaded: {last_line(error)}") from error

    def sizes(self, step: int) -> dict[str, list[int]]:
        """Return the size of each tensor of a checkpoint by name: `tables.TABLE.weight`, `dense.PARAMETER` and so on.

        Raises CheckpointError if the checkpoint cannot be read.
        """
        folder = self.folder(step)
        try:
            stored = folder.reader().read_metadata().state_dict_metadata
        except (OSError, ValueError, EOFError, UnpicklingError) as error:
            raise CheckpointError(f"{folder.location}: cannot be loaded: {last_line(error)}") from error
        return {name: list(entry.size) for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}

    def write(
        self, state: dict[str, Any], progress: Progress, documents: Mapping[str, str], group: dist.ProcessGroup | None
    ) -> None:
        """Write a checkpoint and, into the same folder, `documents` (text by file name). A collective call of `group`.

        Raises CheckpointError on every worker if the checkpoint cannot be written, for example because the disk is
        full. The incomplete folder is then not listed by `steps`.
        """
        folder, is_first = self.folder(progress.step), dist.get_rank(group) == 0
        if is_first and folder.exists(folder.path):  # a complete checkpoint must not be overwritten file by file
            self._folder.remove(f"step-{progress.step}")
        dist.barrier(group)
        try:
            dcp.save(state, storage_writer=folder.writer(), process_group=group)
        except (dcp.CheckpointException, OSError) as error:
            raise CheckpointError(f"{folder.location}: cannot be written: {last_line(error)}") from error
        checksums = gather_all(folder.checksums, group)
        failure = [""]
        if is_first:
            try:
                for name, text in documents.items():
                    folder.write(name, text.encode())
                files = {name: checksum for part in (*checksums, folder.checksums) for name, checksum in part.items()}
                manifest = {"progress": asdict(progress), "files": files}
                folder.write(MANIFEST, json.dumps(manifest, indent=1).encode())
            except OSError as error:
                failure = [last_line(error)]
        dist.broadcast_object_list(failure, src=0, group=group)
        if failure[0]:
            raise CheckpointError(f"{folder.location}: cannot be written: {failure[0]}")

    def prune(self, num_newest: int, best_step: int) -> None:
        """Delete all checkpoints but the newest `num_newest` and the best, and the remains of interrupted saves."""
        names = {f"step-{step}" for step in (*self.steps()[-num_newest:], best_step)}
        for name in self._folder.folders():
            if name.startswith("step-") and name not in names:
                self._folder.remove(name)
