"""One training step: TorchRec's pipelines, with a decision before the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from xxhash import xxh64_intdigest

from asymdiffrec.trainer.train_state import TrainState


class _GuardedBackward:
    """A mix-in for TorchRec's pipelines: the backward pass runs only if `should_update(loss)` returns True.

    Without a backward pass a step changes no parameter: tables are updated in the backward pass, and the dense
    optimizer skips parameters without a gradient.
    """

    should_update: Callable[[torch.Tensor], bool]

    def _backward(self, losses: torch.Tensor) -> None:
        if self.should_update(losses):
            super()._backward(losses)  # type: ignore[misc]


class PlainPipeline(_GuardedBackward, TrainPipelineBase):
    """A pipeline for CPUs: runs one step after the other."""


class OverlappedPipeline(_GuardedBackward, TrainPipelineSparseDist):
    """A pipeline for GPUs: overlaps a step with the copy and the input distribution of the next batch."""


Pipeline: TypeAlias = PlainPipeline | OverlappedPipeline


def build_pipeline(
    train_state: TrainState, should_update: Callable[[torch.Tensor], bool] = lambda loss: True
) -> Pipeline:
    """Return TorchRec's train pipeline for the device. It calls `should_update` before each backward pass."""
    pipeline: Pipeline
    optimizer = cast(torch.optim.Optimizer, train_state.optimizer)  # a pipeline only calls zero_grad and step
    if train_state.device.type == "cuda":
        pipeline = OverlappedPipeline(train_state.model, optimizer, train_state.device, execute_all_batches=False)
    else:
        pipeline = PlainPipeline(train_state.model, optimizer, train_state.device)
    pipeline.should_update = should_update
    return pipeline


def detach(pipeline: Pipeline) -> None:
    """Restore the model's original look-up.

    An attached pipeline replaces the look-up: it returns the embeddings of the batch in flight, whatever the input is.
    """
    if isinstance(pipeline, TrainPipelineSparseDist):
        pipeline.detach()


@contextmanager
def detached(pipeline: Pipeline) -> Iterator[None]:
    """Detach the pipeline inside the block, for example for an evaluation between two training steps."""
    detach(pipeline)
    yield
    if isinstance(pipeline, TrainPipelineSparseDist):
        pipeline.attach()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator for one step, with a function of seed, step and rank.

    A resumed run then draws the same random numbers (for example for dropout), and no checkpoint needs a generator's
    state.
    """
    torch.manual_seed(xxh64_intdigest(f"{seed} {step} {rank}".encode()) >> 1)
