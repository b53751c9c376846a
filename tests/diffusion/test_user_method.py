"""A user-defined method, named in the job file."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from asymdiffrec.base import InputError
from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.losses import prediction_loss
from asymdiffrec.diffusion.methods import AsymmetricDiffusion, method_class
from tests.diffusion.small_model import LAYOUT, samples


class Scaled(AsymmetricDiffusion):
    """The base method with a scaled loss."""

    def parts(self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor) -> dict:
        loss = prediction_loss(self.logit(self.latent(clean, missing)), label, weight)
        return {"scaled": self.config.options["scale"] * loss}


@pytest.fixture(autouse=True)
def _user_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "user_methods", SimpleNamespace(Scaled=Scaled, other=print))


def test_its_parts_are_the_loss() -> None:
    config = DiffusionConfig(method="user_methods:Scaled", options={"scale": 0.5})
    torch.manual_seed(1)
    model = method_class(config.method)(LAYOUT, ModelConfig(), config, seed=5)
    assert isinstance(model, Scaled)
    torch.manual_seed(1)
    base = AsymmetricDiffusion(LAYOUT, ModelConfig(), DiffusionConfig(method="base"), seed=5)
    loss, parts = model(*samples())
    torch.testing.assert_close(loss, 0.5 * base(*samples())[0])
    assert set(parts) == {"loss", "loss_scaled"}


def test_class_of_a_method() -> None:
    assert method_class("user_methods:Scaled") is Scaled
    assert method_class("augment") is AsymmetricDiffusion
    with pytest.raises(InputError, match="method user_methods:other: found"):
        method_class("user_methods:other")
    with pytest.raises(
        ValidationError, match=r"allowed are base, dropout, augment, asymdiff and package\.module:Class"
    ):
        DiffusionConfig(method="asym")
