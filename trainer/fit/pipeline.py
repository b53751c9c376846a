"""One training step: TorchRec's pipelines, with a question before the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from xxhash import xxh64_intdigest

from asymdiffrec.trainer.build import TrainState


class _Asking:
    """Asks `may_learn(loss)` before a backward pass. Where the answer is no, the step changes no parameter: tables are
    updated in the backward pass, and the dense optimizer leaves alone what has no gradient."""

    may_learn: Callable[[torch.Tensor], bool]

    def _backward(self, losses: torch.Tensor) -> None:
        if self.may_learn(losses):
            super()._backward(losses)  # type: ignore[misc]


class PlainPipeline(_Asking, TrainPipelineBase):
    """A step after the other"""


class OverlappedPipeline(_Asking, TrainPipelineSparseDist):
    """On CUDA the next batch's copy and input distribution overlap this one's step."""


Pipeline: TypeAlias = PlainPipeline | OverlappedPipeline


def pipeline(train_state: TrainState, may_learn: Callable[[torch.Tensor], bool] = lambda loss: True) -> Pipeline:
    """TorchRec's train pipeline, which asks `may_learn` before each backward pass."""
    made: Pipeline
    update = cast(torch.optim.Optimizer, train_state.update)  # of which a pipeline calls zero_grad and step
    if train_state.device.type == "cuda":
        made = OverlappedPipeline(train_state.model, update, train_state.device, execute_all_batches=False)
    else:
        made = PlainPipeline(train_state.model, update, train_state.device)
    made.may_learn = may_learn
    return made


def detach(pipeline: Pipeline) -> None:
    """Give the model its own look-up back: the pipeline's answers with the batch in flight, whatever batch comes."""
    if isinstance(pipeline, TrainPipelineSparseDist):
        pipeline.detach()


@contextmanager
def detached(pipeline: Pipeline) -> Iterator[None]:
    """`detach` for the length of a block, as an evaluation between two training steps."""
    detach(pipeline)
    yield
    if isinstance(pipeline, TrainPipelineSparseDist):
        pipeline.attach()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make torch's random numbers in a step, such as those of dropout, a function of these three: a resumed run draws
    what it would have drawn, and no checkpoint holds a generator's state."""
    torch.manual_seed(xxh64_intdigest(f"{seed} {step} {rank}".encode()) >> 1)
