"""`Recommender`: the look-up and the dense part."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.recommender import Recommender
from tests.diffusion.small_model import build, build_trained, samples


class Tables(nn.Module):
    """A look-up that only scales the vectors of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: SimpleNamespace) -> tuple[Tensor, Tensor]:
        return batch.vectors * self.scale, batch.missing


@pytest.fixture
def batch() -> SimpleNamespace:
    names = ("vectors", "missing", "label", "weight", "sample_index")
    return SimpleNamespace(**dict(zip(names, samples(), strict=True)))


def test_loss_is_that_of_the_looked_up_vectors(batch: SimpleNamespace) -> None:
    recommender = Recommender(Tables(), build())
    loss, parts = recommender(batch)
    expected, _ = recommender.diffusion(batch.vectors, batch.missing, batch.label, batch.weight, batch.sample_index)
    assert torch.equal(loss, expected)
    assert torch.equal(parts["loss"], expected)
    loss.backward()
    assert recommender.tables.scale.grad is not None


def test_score_is_that_of_the_looked_up_vectors(batch: SimpleNamespace) -> None:
    recommender = Recommender(Tables(), build_trained())
    assert torch.equal(recommender.score(batch), recommender.diffusion.score(batch.vectors, batch.missing))


def test_a_pipeline_can_trace_the_recommender_down_to_its_two_modules() -> None:
    """TorchRec's pipelines trace the model symbolically to find the look-up, which they start early."""

    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return module_qualified_name in ("tables", "diffusion")

    graph = Leaves().trace(Recommender(Tables(), build()))
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["tables", "diffusion"]
