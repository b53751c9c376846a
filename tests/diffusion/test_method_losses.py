"""Losses and gradients of every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from asymdiffrec.base import InputError
from asymdiffrec.diffusion.extractors.build import EXTRACTORS
from tests.diffusion.small_model import (
    BATCH,
    FIELDS,
    LOSS_TERMS,
    OTHER_CONFIGS,
    WIDTH,
    build,
    build_trained,
    gradients,
    samples,
)

NO_WEIGHT = {"main": 0, "recon": 0, "aux": 0, "distil": 0}


@pytest.mark.parametrize("method", LOSS_TERMS)
def test_loss_is_the_weighted_sum_of_the_method_s_terms(method: str) -> None:
    weights = {"main": 1.0, "recon": 0.5, "aux": 2.0, "distil": 3.0}
    loss, parts = build_trained(method=method, weights=weights)(*samples())
    assert set(parts) == {"loss"} | {f"loss_{name}" for name in LOSS_TERMS[method]}
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(
        loss, torch.stack([weights[name] * parts[f"loss_{name}"] for name in LOSS_TERMS[method]]).sum()
    )
    torch.testing.assert_close(loss, parts["loss"])


def test_whole_objective_compiles_as_one_graph() -> None:
    eager, compiled = build_trained(), build_trained()
    compiled.load_state_dict(eager.state_dict())
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    losses = [model(*samples())[0] for model in (eager, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(gradients(eager), gradients(compiled))


def test_terms_of_asymdiff_follow_the_equations() -> None:
    model = build_trained()
    clean, missing, label, weight, index = samples()
    _, parts = model(clean, missing, label, weight, index)
    noisy, mask = model.process(clean, missing, index)
    assert (mask & ~missing).any()
    m, s = missing.float(), mask.float()
    clean_latent, denoised = model.extractor(clean, m), model.denoiser(s, model.extractor(noisy, s), noisy)
    p, q = (model.head(latent).squeeze(1).sigmoid() for latent in (clean_latent, denoised))

    def mean(part: Tensor) -> Tensor:
        return (weight * part).mean()

    bce = {name: -(label * x.log() + (1 - label) * (1 - x).log()) for name, x in (("main", p), ("aux", q))}
    torch.testing.assert_close(parts["loss_main"], mean(bce["main"]).detach())
    torch.testing.assert_close(parts["loss_aux"], mean(bce["aux"]).detach())
    torch.testing.assert_close(parts["loss_recon"], mean((denoised - clean_latent).square().mean(1)).detach())
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(parts["loss_distil"], mean(divergence).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", LOSS_TERMS)
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_every_parameter_gets_a_gradient_also_with_zero_weights(method: str, extractor: str) -> None:
    for weights in ({}, NO_WEIGHT):
        model = build(extractor, method=method, weights=weights)
        model(*samples())[0].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("config", OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_other_configs_train_every_parameter_and_average_over_samples(config: dict[str, Any]) -> None:
    model, batch = build_trained(**config), samples()
    loss, parts = model(*batch)
    loss.backward()
    whole = gradients(model)
    assert all(gradient.any() for gradient in whole.values())
    model.zero_grad()
    halves = [model(*(tensor[half] for tensor in batch)) for half in (slice(0, 32), slice(32, 64))]
    torch.stack([loss for loss, _ in halves]).mean().backward()
    torch.testing.assert_close(torch.stack([loss for loss, _ in halves]).mean().detach(), parts["loss"])
    torch.testing.assert_close(gradients(model), whole)


@pytest.mark.parametrize("method", LOSS_TERMS)
def test_losses_and_gradients_of_a_batch_are_means_over_its_halves(method: str) -> None:
    model, batch = build_trained(method=method), samples()
    model(*batch)[0].backward()
    whole, whole_parts = gradients(model), model(*batch)[1]
    model.zero_grad()
    halves = [model(*(tensor[half] for tensor in batch)) for half in (slice(0, 32), slice(32, 64))]
    torch.stack([loss for loss, _ in halves]).mean().backward()
    for name, part in whole_parts.items():
        torch.testing.assert_close(torch.stack([parts[name] for _, parts in halves]).mean(), part)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


def test_mean_vector_of_a_field_replaces_missing_fields() -> None:
    model = build(method="base", fill="mean")
    clean, missing, label, _, index = samples(512, missing_rate=0.3)
    optimizer = torch.optim.Adam([model.fill.mean], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        model(clean + 3 * (~missing).repeat_interleave(WIDTH, 1), missing, label, torch.ones(512), index)[0].backward()
        optimizer.step()
    vectors = (clean + 3).unflatten(1, (FIELDS, WIDTH))
    expected = torch.stack([vectors[~missing[:, field], field].mean(0) for field in range(FIELDS)])
    torch.testing.assert_close(model.fill.mean.detach().view(FIELDS, WIDTH), expected, atol=1e-3, rtol=0)
    filled = torch.where(missing.repeat_interleave(WIDTH, 1), model.fill.mean.detach(), clean)
    complete = torch.zeros_like(missing)
    torch.testing.assert_close(model.score(clean, missing), model.score(filled, complete))


def test_gaussian_noise_requires_asymdiff_in_the_latent_space() -> None:
    for wrong in ({"method": "augment"}, {"space": "fields"}):
        with pytest.raises(InputError, match="noise: gaussian is allowed only for method asymdiff with space latent"):
            build(noise="gaussian", **wrong)


@pytest.mark.parametrize(("detach", "trained"), [(True, {"denoiser"}), (False, {"denoiser", "extractor"})])
def test_reconstruction_trains_the_extractor_only_without_detach(detach: bool, trained: set[str]) -> None:
    model = build_trained(weights=NO_WEIGHT | {"recon": 1}, detach_reconstruction=detach)
    model(*samples())[0].backward()
    assert {name.split(".")[0] for name, gradient in gradients(model).items() if gradient.any()} == trained


@pytest.mark.parametrize("term", ["aux", "distil"])
def test_prediction_through_the_denoiser_trains_every_module(term: str) -> None:
    model = build_trained(weights=NO_WEIGHT | {term: 1})
    model(*samples())[0].backward()
    trained = {name.split(".")[0] for name, gradient in gradients(model).items() if gradient.any()}
    assert trained == {"denoiser", "extractor", "head"}


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_both_views_in_one_batch_give_the_same_gradients(extractor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the extractor gets both views in one batch."""
    results = []
    for in_one_batch in (False, True):
        monkeypatch.setattr("asymdiffrec.diffusion.methods._views_in_one_batch", lambda _, answer=in_one_batch: answer)
        model, (clean, *rest) = build_trained(extractor), samples()
        clean.requires_grad_()
        loss, _ = model(clean, *rest)
        loss.backward()
        results.append({"loss": loss.detach(), "clean": clean.grad, **gradients(model)})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)


def test_masked_columns_get_no_gradient_from_the_noisy_view() -> None:
    model = build(method="dropout", forward={"time": {"law": "point", "value": 0.5}})
    clean, missing, label, weight, index = samples()
    clean.requires_grad_()
    model(clean, missing, label, weight, index)[0].backward()
    _, mask = model.process(clean, missing, index)
    gradient = clean.grad.view(BATCH, FIELDS, WIDTH)
    assert not gradient[mask].any()
    assert gradient[~mask].any()


@pytest.mark.parametrize("method", LOSS_TERMS)
def test_training_reduces_the_loss(method: str) -> None:
    model, (clean, missing, label, weight, index) = build(method=method), samples(128)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    prediction_losses = []
    for step in range(50):
        loss, parts = model(clean, missing, label, weight, index + step * 128)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Without L_recon: its scale is that of the latent, which training may enlarge.
        prediction_losses.append(sum(parts[name].item() for name in ("loss_main", "loss_aux") if name in parts))
    assert sum(prediction_losses[-5:]) < 0.8 * sum(prediction_losses[:5])
    accuracy = ((model.score(clean, missing) > 0).float() == label).float().mean()
    assert accuracy > 0.85
