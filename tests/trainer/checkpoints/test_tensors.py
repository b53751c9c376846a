"""Snapshots of a train state in host memory."""

from __future__ import annotations

from typing import Any

import torch

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.trainer.checkpoints import tensors as checkpoint
from asymdiffrec.trainer.checkpoints.tensors import Snapshot
from tests.trainer.checkpoints.models import Build, are_equal, local_tensors, train


def test_a_snapshot_does_not_change_while_training_continues(train_state: Build, batches: list[Batch]) -> None:
    """And the next snapshot uses the memory of the first."""
    ours = train_state()
    snapshot = Snapshot(ours)

    def copies(state: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for part in state.values() for name, tensor in local_tensors(part).items()}

    taken = snapshot.take()
    before = copies(taken)
    train(ours, batches[:1])
    assert are_equal(copies(taken), before)
    assert not are_equal(copies(checkpoint.state(ours)), before)
    addresses = {name: tensor.data_ptr() for part in taken.values() for name, tensor in local_tensors(part).items()}
    again = snapshot.take()
    assert are_equal(copies(again), copies(checkpoint.state(ours)))
    assert {
        name: tensor.data_ptr() for part in again.values() for name, tensor in local_tensors(part).items()
    } == addresses
