"""Helpers of checkpoint tests: train a model, and read or overwrite its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.embeddings.state import table_state
from asymdiffrec.embeddings.torchrec_compat import ShardedTensor
from asymdiffrec.trainer.fit.pipeline import build_pipeline
from asymdiffrec.trainer.train_state import TrainState

Build = Callable[..., TrainState]


def train(train_state: TrainState, batches: list[Batch]) -> list[float]:
    """Train on the batches, and return the losses."""
    step, stream = build_pipeline(train_state).progress, iter(batches)
    return [float(step(stream)["loss"]) for _ in batches]


def weights(train_state: TrainState) -> dict[str, torch.Tensor]:
    """Return every weight and buffer of the model."""
    return local_tensors(train_state.model.state_dict())


def optimizer_states(train_state: TrainState) -> dict[str, torch.Tensor]:
    """Return the state of both optimizers."""
    tables = table_state(train_state.model, train_state.tables_optimizer, train_state.job.tables.optimizer)
    dense = {
        f"{name}.{key}": value
        for name, parameter in train_state.dense.items()
        for key, value in train_state.dense_optimizer.state[parameter].items()
    }
    return local_tensors({name: state for name, state in tables.items() if not name.endswith(".weight")} | dense)


def local_tensors(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the live tensors; this process has all rows and columns."""
    sharded = {name: tensor.local_tensor() for name, tensor in tensors.items() if isinstance(tensor, ShardedTensor)}
    return {**tensors, **sharded}


def overwrite(tensors: dict[str, torch.Tensor]) -> None:
    """Fill all tensors with a value that training never gives."""
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(-7)


def are_equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Return whether names and values are equal, bit for bit."""
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
