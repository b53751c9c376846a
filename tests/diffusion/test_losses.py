"""The terms of the loss, and the denoiser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, kl_divergence

from asymdiffrec.diffusion.denoiser import Denoiser
from asymdiffrec.diffusion.losses import distillation_loss, prediction_loss, reconstruction_loss

logits = st.floats(-20, 20, width=32)


def trained_denoiser(fields: int = 4, latent: int = 6, field_width: int = 0) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(fields, latent, hidden=8, field_width=field_width)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter)
    return denoiser


def test_denoiser_returns_complete_samples_unchanged_and_no_others() -> None:
    z, s, x = torch.randn(32, 6), torch.zeros(32, 4), torch.randn(32, 5)
    s[16:, 2] = 1.0
    denoised = trained_denoiser(field_width=5)(s, z, x)
    assert torch.equal(denoised[:16], z[:16])
    assert (denoised[16:] != z[16:]).all()


@pytest.mark.parametrize("field_width", [0, 5])
def test_denoiser_is_a_two_layer_mlp_of_the_concatenation(field_width: int) -> None:
    denoiser, z, s, x = (
        trained_denoiser(field_width=field_width),
        torch.randn(9, 6),
        torch.ones(9, 4),
        torch.randn(9, 5),
    )
    first, last = denoiser.change.first, denoiser.change.rest[-1]
    weights = [first.x.weight, first.s.weight, *([denoiser.fields.weight] if field_width else [])]
    hidden = torch.cat([z, s, x[:, :field_width]], 1) @ torch.cat(weights, 1).t() + first.x.bias
    torch.testing.assert_close(denoiser(s, z, x), z + last(hidden.relu()))


def test_denoiser_starts_as_the_identity_and_learns() -> None:
    denoiser, z, s = Denoiser(4, 6, hidden=8, field_width=5), torch.randn(9, 6), torch.ones(9, 4)
    denoised = denoiser(s, z, torch.randn(9, 5))
    assert torch.equal(denoised, z)
    denoised.sum().backward()
    assert all(parameter.grad is not None for parameter in denoiser.parameters())
    assert denoiser.change.rest[-1].weight.grad.any()


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(logits, logits, st.floats(0, 3, width=32)), min_size=1, max_size=20))
def test_distillation_is_the_divergence_of_bernoulli_distributions(samples: list[tuple[float, float, float]]) -> None:
    teacher, student, weight = torch.tensor(samples, dtype=torch.float64).unbind(1)
    teacher, student = teacher.clone().requires_grad_(), student.clone().requires_grad_()
    reference = kl_divergence(Bernoulli(logits=teacher.detach()), Bernoulli(logits=student))
    loss = distillation_loss(teacher, student, weight)
    torch.testing.assert_close(loss, (weight * reference).mean(), rtol=1e-6, atol=1e-9)
    loss.backward()
    assert teacher.grad is None
    expected = weight * (student.detach().sigmoid() - teacher.detach().sigmoid()) / len(samples)
    torch.testing.assert_close(student.grad, expected)


def test_terms_follow_their_definition() -> None:
    torch.manual_seed(0)
    logit, label, weight = torch.randn(5).double(), torch.tensor([0.0, 1, 1, 0, 1]).double(), torch.rand(5).double()
    p = logit.sigmoid()
    bce = -(label * p.log() + (1 - label) * (1 - p).log())
    torch.testing.assert_close(prediction_loss(logit, label, weight), (weight * bce).sum() / 5)
    a, b = torch.randn(2, 5, 3).double()
    by_hand = sum(weight[i] * (a[i, k] - b[i, k]) ** 2 / 3 for i in range(5) for k in range(3)) / 5
    torch.testing.assert_close(reconstruction_loss(a, b, weight), by_hand)
