"""The work of the dense part, counted by hand and by `dense_work`, and copies of modules on the meta device."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.extractors.build import EXTRACTORS
from asymdiffrec.diffusion.forward import MissingPatterns
from asymdiffrec.diffusion.methods import AsymmetricDiffusion
from asymdiffrec.embeddings.planner.dense import MASTER_BYTES, DenseWork, dense_work, on_meta
from asymdiffrec.field_layout import FieldLayout

BATCH, SIZES = 48, (20, 32, 8, 1)
PRODUCTS = sum(inputs * outputs for inputs, outputs in pairwise(SIZES))
FIELDS, WIDTH = 6, 8


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(SIZES)]
        self.layers = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).sum()


class Product(nn.Module):
    """sum(x W): one matrix product with traffic that can be counted by hand."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).sum()


class Activated(Product):
    """The same product with pointwise operations before the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.weight) * 2 + 1).exp().sum()


class Frozen(nn.Module):
    """A frozen layer and a trained layer; it returns the loss and values for the log."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8).requires_grad_(False)
        self.second = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.second(self.first(x)).sum()
        return loss, {"loss": loss.detach()}


def moved(work: DenseWork) -> float:
    """Return the bytes of the two passes only, for work with one moment."""
    return work.bytes - work.gradients - 4 * MASTER_BYTES * work.parameters


def test_flops_of_an_mlp_are_six_per_weight_and_sample_if_the_input_has_a_gradient() -> None:
    work = dense_work(Mlp(), [torch.empty(BATCH, SIZES[0], requires_grad=True)])
    assert work.flops == 6 * BATCH * PRODUCTS
    assert work.parameters == PRODUCTS + sum(SIZES[1:])
    assert work.gradients == 4 * work.parameters


def test_an_input_without_gradient_saves_one_product_of_the_first_layer() -> None:
    work = dense_work(Mlp(), [torch.empty(BATCH, SIZES[0])])
    assert work.flops == 6 * BATCH * PRODUCTS - 2 * BATCH * SIZES[0] * SIZES[1]


def test_activations_of_an_mlp_are_its_input_and_the_outputs_of_hidden_layers() -> None:
    work = dense_work(Mlp(), [torch.empty(BATCH, SIZES[0], requires_grad=True)])
    assert work.activations == 4 * BATCH * sum(SIZES[:-1])


def test_bytes_of_a_matrix_product_are_its_operands_and_results() -> None:
    x, w = BATCH * 16, 16 * 4
    work = dense_work(Product(16, 4), [torch.empty(BATCH, 16, requires_grad=True)])
    # Forward: x and W are read. Backward: x is read, dW written; W is read, dx written. The rest is the loss.
    assert moved(work) == pytest.approx(4 * (3 * x + 3 * w), abs=4 * 6)


def test_pointwise_operations_after_a_product_move_only_the_bytes_that_backward_reads() -> None:
    plain, activated = (
        dense_work(module(16, 4), [torch.empty(BATCH, 16, requires_grad=True)]) for module in (Product, Activated)
    )
    # The gradient of exp reads its output; everything else is part of the kernels of the matrix products.
    assert moved(activated) - moved(plain) <= 4 * 5 * BATCH * 4
    assert activated.flops == plain.flops


def test_the_update_reads_and_writes_each_moment() -> None:
    none, two = (dense_work(Mlp(), [torch.empty(BATCH, SIZES[0])], moments=count) for count in (0, 2))
    assert two.bytes - none.bytes == 2 * 2 * MASTER_BYTES * none.parameters


def test_half_precision_halves_bytes_and_activations_and_leaves_flops() -> None:
    whole, half = (
        dense_work(Mlp().to(dtype), [torch.empty(BATCH, SIZES[0], dtype=dtype, requires_grad=True)])
        for dtype in (torch.float32, torch.float16)
    )
    assert half.activations == whole.activations / 2
    assert half.gradients == whole.gradients / 2
    assert moved(half) == pytest.approx(moved(whole) / 2, rel=0.01)
    assert half.flops == whole.flops


def test_frozen_parameters_are_not_counted_and_the_loss_can_come_with_other_values() -> None:
    work = dense_work(Frozen(), [torch.empty(BATCH, 8)])
    assert work.parameters == 9
    assert work.flops == 2 * BATCH * 8 * 8 + 2 * 2 * BATCH * 8  # forward of both, dW of the second


def test_the_copy_on_meta_has_the_same_shapes_and_does_not_change_the_module() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half()
    module[0].bias.requires_grad_(False)
    module[1].weight = module[1].bias  # shared ones stay shared
    meta_copy = on_meta(module)
    assert all(value.is_meta for value in meta_copy.state_dict().values())
    assert not any(value.is_meta for value in module.state_dict().values())
    assert meta_copy[1].weight is meta_copy[1].bias
    for original, copied in zip(module.parameters(), meta_copy.parameters(), strict=True):
        assert (original.shape, original.dtype, original.requires_grad) == (
            copied.shape,
            copied.dtype,
            copied.requires_grad,
        )


@pytest.mark.parametrize("pattern", ["uniform", "outage", "empirical"])
@pytest.mark.parametrize("method", ["base", "dropout", "augment", "asymdiff"])
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_work_of_every_extractor_and_method_can_be_counted(extractor: str, method: str, pattern: str) -> None:
    model = AsymmetricDiffusion(
        FieldLayout.from_widths([WIDTH] * FIELDS, ["user", "item"] * (FIELDS // 2)),
        ModelConfig.model_validate({"extractor": {"name": extractor, "latent": 16}, "head": [8]}),
        DiffusionConfig.model_validate({"method": method, "forward": {"pattern": pattern}}),
        seed=1,
        patterns=MissingPatterns(torch.eye(FIELDS, dtype=torch.bool), torch.ones(FIELDS, dtype=torch.int64)),
    )
    once, twice = (dense_work(model, samples(count)) for count in (BATCH, 2 * BATCH))
    weights = sum(weight.numel() for weight in model.parameters())
    assert once.parameters == weights
    assert twice.flops == 2 * once.flops
    # Everything grows with the number of samples, except parameters and constants.
    assert once.activations < twice.activations <= 2 * once.activations
    assert once.bytes < twice.bytes < 2 * once.bytes
    # Each weight is used at least once; the first layer may not need the gradient of its input.
    matrices = sum(weight.numel() for weight in model.extractor.parameters() if weight.ndim == 2)
    assert once.flops >= 4 * BATCH * matrices


def test_a_second_view_costs_a_second_pass() -> None:
    flops = {
        method: dense_work(
            AsymmetricDiffusion(
                FieldLayout.from_widths([WIDTH] * FIELDS),
                ModelConfig(),
                DiffusionConfig.model_validate({"method": method, "mask_in_extractor": False}),
                seed=1,
            ),
            samples(BATCH),
        ).flops
        for method in ("base", "dropout", "augment", "asymdiff")
    }
    assert flops["dropout"] == flops["base"]
    assert flops["augment"] == 2 * flops["base"]
    assert flops["asymdiff"] > flops["augment"]


def samples(batch: int) -> list[Tensor]:
    """Return clean, missing, label, weight and sample_index."""
    clean = torch.empty(batch, FIELDS * WIDTH, requires_grad=True)
    missing = torch.empty(batch, FIELDS, dtype=torch.bool)
    return [clean, missing, torch.empty(batch), torch.empty(batch), torch.empty(batch, dtype=torch.int64)]
