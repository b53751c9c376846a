"""Checkpoints in one layout: no key or shape depends on rank, plan or kernel, so any number of workers loads one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from asymdiffrec.embeddings.state import look_up_state, table_state
from asymdiffrec.trainer.build import Trainee


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or loaded."""


@dataclass(frozen=True)
class Progress:
    """Where training is, and what validation has found so far."""

    step: int = 0
    best_step: int = 0
    best_value: float | None = None
    waited: int = 0
    """validations since the best one"""

    def validated(self, value: float, higher_is_better: bool) -> Progress:
        better = self.best_value is None or (value > self.best_value if higher_is_better else value < self.best_value)
        if better:
            return replace(self, best_step=self.step, best_value=value, waited=0)
        return replace(self, waited=self.waited + 1)


def save(folder: Path, trainee: Trainee, progress: Progress) -> None:
    """Write a checkpoint; all workers call this together. The folder gets its name when it is complete.

    Raises CheckpointError where it cannot be written, as on a full disk; then there is no folder of that name.
    """
    partial = folder.with_name(folder.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "progress.json").write_text(json.dumps(asdict(progress)) + "\n")
    dist.barrier()
    with _as_checkpoint_error(folder, "written"):
        dcp.save(_state(trainee), checkpoint_id=str(partial))
    dist.barrier()
    if dist.get_rank() == 0:
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    dist.barrier()


def load(folder: Path, trainee: Trainee) -> Progress:
    """Fill a model and its optimizers, under whatever plan, from a checkpoint; all workers call this together.

    Raises CheckpointError where the checkpoint cannot be read or does not fit the model.
    """
    _load(folder, _state(trainee))
    progress = read_progress(folder)
    trainee.tables_optimizer.set_optimizer_step(progress.step)
    return progress


def load_weights(folder: Path, trainee: Trainee) -> None:
    """Fill a model alone, whatever optimizers it has, for evaluation and prediction; otherwise as `load`."""
    _load(folder, _weights(trainee))


def _load(folder: Path, state: dict[str, Any]) -> None:
    with _as_checkpoint_error(folder, "loaded"):
        dcp.load(state, checkpoint_id=str(folder))


@contextmanager
def _as_checkpoint_error(folder: Path, what: str) -> Iterator[None]:
    """One line for what goes wrong in torch, whose own exception derives from BaseException."""
    try:
        yield
    except (dcp.CheckpointException, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(f"{folder}: cannot be {what}: {lines[-1].strip()}") from error


def read_progress(folder: Path) -> Progress:
    with _as_checkpoint_error(folder, "loaded"):
        return Progress(**json.loads((folder / "progress.json").read_text()))


def _weights(trainee: Trainee) -> dict[str, Any]:
    """The live weights under their canonical names, and what else a look-up needs."""
    dense = {name: parameter.detach() for name, parameter in trainee.dense.items()}
    return {"tables": look_up_state(trainee.model), "dense": dense}


def _state(trainee: Trainee) -> dict[str, Any]:
    """The live weights and optimizer states under their canonical names."""
    optimizer = {
        f"{name}.{key}": value
        for name, parameter in trainee.dense.items()
        for key, value in trainee.dense_optimizer.state[parameter].items()
    }
    tables = table_state(trainee.model, trainee.tables_optimizer, trainee.job.tables.optimizer)
    return _weights(trainee) | {"tables": tables, "dense_optimizer": optimizer}
