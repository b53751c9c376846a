import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from asymdiffrec.base import InputError
from asymdiffrec.diffusion.config import DiffusionConfig, ModelConfig
from asymdiffrec.diffusion.extractors.build import EXTRACTORS
from asymdiffrec.diffusion.layers import Candidates
from asymdiffrec.diffusion.model import AsymmetricDiffusion, Recommender, method_class
from asymdiffrec.diffusion.objective import prediction_loss
from asymdiffrec.field_layout import FieldLayout

FIELDS, WIDTH, BATCH = 6, 4, 64
LAYOUT = FieldLayout.from_widths([WIDTH] * FIELDS)
PARTS = {
    "base": {"main"},
    "dropout": {"main"},
    "augment": {"main", "aux"},
    "asymdiff": {"main", "recon", "aux", "distil"},
}
SETTINGS = {
    "indicators": {"method": "base", "mask_in_extractor": True},
    "mean": {"method": "base", "fill": "mean"},
    "filled": {"fill": "mean"},
    "gaussian": {"noise": "gaussian"},
    "symmetric": {"space": "fields"},
    "published": {"fields_in_denoiser": False},
    "without reconstruction": {"weights": {}},
    "no gate": {"gate": False},
    "told nothing": {"mask_in_extractor": False, "mask_in_denoiser": False},
}
"""Other models that the settings make"""
NO_WEIGHT = {"main": 0, "recon": 0, "aux": 0, "distil": 0}


def build(name: str = "mlp", **diffusion) -> AsymmetricDiffusion:
    torch.manual_seed(1)
    model = ModelConfig.model_validate({"extractor": {"name": name, "latent": 16}, "head": [8]})
    settings = DiffusionConfig.model_validate({"weights": {"recon": 1}, **diffusion})
    return AsymmetricDiffusion(LAYOUT, model, settings, seed=5)


def shaken(model: AsymmetricDiffusion) -> AsymmetricDiffusion:
    """As after some training: the denoiser's last layer no longer zero."""
    if hasattr(model, "denoiser"):
        for parameter in model.denoiser.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


def samples(batch: int = BATCH, missing_rate: float = 0.1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """clean, missing, label, weight, sample_index; the label is a function of the fields, with no noise."""
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(batch, FIELDS, WIDTH, generator=generator)
    label = (vectors.sum((1, 2)) > 0).float()
    missing = torch.rand(batch, FIELDS, generator=generator) < missing_rate
    clean = vectors.masked_fill(missing[:, :, None], 0.0).flatten(1)
    return clean, missing, label, torch.rand(batch, generator=generator) + 0.5, torch.arange(batch) + 2**33


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", PARTS)
def test_the_loss_is_the_weighted_sum_of_the_parts_that_the_method_has(method: str) -> None:
    weights = {"main": 1.0, "recon": 0.5, "aux": 2.0, "distil": 3.0}
    loss, parts = shaken(build(method=method, weights=weights))(*samples())
    assert set(parts) == {"loss"} | {f"loss_{name}" for name in PARTS[method]}
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(
        loss, torch.stack([weights[name] * parts[f"loss_{name}"] for name in PARTS[method]]).sum()
    )
    torch.testing.assert_close(loss, parts["loss"])


def test_the_whole_objective_compiles_as_one_graph() -> None:
    eager, compiled = shaken(build()), shaken(build())
    compiled.load_state_dict(eager.state_dict())
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    losses = [model(*samples())[0] for model in (eager, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(gradients(eager), gradients(compiled))


def test_the_parts_of_asymdiff_by_the_equations() -> None:
    model = shaken(build())
    clean, missing, label, weight, index = samples()
    _, parts = model(clean, missing, label, weight, index)
    noisy, step = model.process(clean, missing, index)
    assert (step & ~missing).any()
    m, s = missing.float(), step.float()
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


@pytest.mark.parametrize("method", PARTS)
@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_parameter_gets_a_gradient_even_when_weights_are_zero(method: str, name: str) -> None:
    for weights in ({}, NO_WEIGHT):
        model = build(name, method=method, weights=weights)
        model(*samples())[0].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_other_settings_train_every_parameter_and_are_means_over_samples(settings: dict) -> None:
    model, batch = shaken(build(**settings)), samples()
    loss, parts = model(*batch)
    loss.backward()
    whole = gradients(model)
    assert all(gradient.any() for gradient in whole.values())
    model.zero_grad()
    halves = [model(*(tensor[half] for tensor in batch)) for half in (slice(0, 32), slice(32, 64))]
    torch.stack([loss for loss, _ in halves]).mean().backward()
    torch.testing.assert_close(torch.stack([loss for loss, _ in halves]).mean().detach(), parts["loss"])
    torch.testing.assert_close(gradients(model), whole)


def test_the_mean_of_a_field_stands_where_it_is_missing() -> None:
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
    none = torch.zeros_like(missing)
    torch.testing.assert_close(model.score(clean, missing), model.score(filled, none))


@pytest.mark.parametrize("settings", [{"noise": "gaussian"}, {"space": "fields"}], ids=["gaussian", "symmetric"])
def test_a_complete_sample_is_passed_on_as_it_is(settings: dict) -> None:
    model = shaken(build(**settings))
    clean, *_ = samples(missing_rate=0.0)
    none = torch.zeros(BATCH, FIELDS, dtype=torch.bool)
    assert torch.equal(model.score(clean, none), model.logit(model.latent(clean, none)))


def test_gaussian_noise_is_for_asymdiff_in_the_latent_space() -> None:
    for wrong in ({"method": "augment"}, {"space": "fields"}):
        with pytest.raises(InputError, match="noise: gaussian is for method asymdiff"):
            build(noise="gaussian", **wrong)


class Halved(AsymmetricDiffusion):
    """A method of one's own."""

    def parts(self, clean: Tensor, missing: Tensor, label: Tensor, weight: Tensor, sample_index: Tensor) -> dict:
        loss = prediction_loss(self.logit(self.latent(clean, missing)), label, weight)
        return {"half": self.config.options["share"] * loss}


def test_a_method_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_methods", SimpleNamespace(Halved=Halved, other=print))
    config = DiffusionConfig(method="own_methods:Halved", options={"share": 0.5})
    torch.manual_seed(1)
    own = method_class(config.method)(LAYOUT, ModelConfig(), config, seed=5)
    assert isinstance(own, Halved)
    torch.manual_seed(1)
    ours = AsymmetricDiffusion(LAYOUT, ModelConfig(), DiffusionConfig(method="base"), seed=5)
    loss, parts = own(*samples())
    torch.testing.assert_close(loss, 0.5 * ours(*samples())[0])
    assert set(parts) == {"loss", "loss_half"}
    assert method_class("augment") is AsymmetricDiffusion
    with pytest.raises(InputError, match="method own_methods:other: found"):
        method_class("own_methods:other")
    with pytest.raises(
        ValidationError, match=r"allowed are base, dropout, augment, asymdiff and package\.module:Class"
    ):
        DiffusionConfig(method="asym")


@pytest.mark.parametrize(("detach", "reached"), [(True, {"denoiser"}), (False, {"denoiser", "extractor"})])
def test_reconstruction_trains_the_denoiser_and_the_extractor_only_where_asked(detach: bool, reached: set[str]) -> None:
    model = shaken(build(weights=NO_WEIGHT | {"recon": 1}, detach_reconstruction=detach))
    model(*samples())[0].backward()
    assert {name.split(".")[0] for name, gradient in gradients(model).items() if gradient.any()} == reached


@pytest.mark.parametrize(
    ("part", "reached"), [("aux", {"denoiser", "extractor", "head"}), ("distil", {"denoiser", "extractor", "head"})]
)
def test_prediction_through_the_denoiser_trains_everything(part: str, reached: set[str]) -> None:
    model = shaken(build(weights=NO_WEIGHT | {part: 1}))
    model(*samples())[0].backward()
    assert {name.split(".")[0] for name, gradient in gradients(model).items() if gradient.any()} == reached


@pytest.mark.parametrize("method", PARTS)
def test_losses_and_gradients_of_a_batch_are_the_means_over_its_halves(method: str) -> None:
    model, batch = shaken(build(method=method)), samples()
    model(*batch)[0].backward()
    whole, whole_parts = gradients(model), model(*batch)[1]
    model.zero_grad()
    halves = [model(*(tensor[half] for tensor in batch)) for half in (slice(0, 32), slice(32, 64))]
    torch.stack([loss for loss, _ in halves]).mean().backward()
    for name, part in whole_parts.items():
        torch.testing.assert_close(torch.stack([parts[name] for _, parts in halves]).mean(), part)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_both_views_as_one_batch_are_the_same_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the extractor gets both at once."""
    found = []
    for as_one in (False, True):
        monkeypatch.setattr("asymdiffrec.diffusion.model._goes_as_one_batch", lambda _, as_one=as_one: as_one)
        model, (clean, *rest) = shaken(build(name)), samples()
        clean.requires_grad_()
        loss, _ = model(clean, *rest)
        loss.backward()
        found.append({"loss": loss.detach(), "clean": clean.grad, **gradients(model)})
    for part, value in found[0].items():
        torch.testing.assert_close(found[1][part], value, rtol=1e-4, atol=1e-6)


def test_dropped_columns_get_no_gradient_from_the_noisy_view() -> None:
    model = build(method="dropout", forward={"time": {"law": "point", "value": 0.5}})
    clean, missing, label, weight, index = samples()
    clean.requires_grad_()
    model(clean, missing, label, weight, index)[0].backward()
    _, step = model.process(clean, missing, index)
    gradient = clean.grad.view(BATCH, FIELDS, WIDTH)
    assert not gradient[step].any()
    assert gradient[~step].any()


def test_complete_samples_are_scored_exactly_by_head_and_extractor() -> None:
    model = shaken(build())
    clean, _, _, _, _ = samples(missing_rate=0.0)
    none = torch.zeros(BATCH, FIELDS, dtype=torch.bool)
    expected = model.head(model.extractor(clean, torch.zeros(BATCH, FIELDS))).squeeze(1)
    assert torch.equal(model.score(clean, none), expected)


def test_scores_of_incomplete_samples_pass_the_denoiser() -> None:
    model = shaken(build())
    clean, missing, _, _, _ = samples(missing_rate=0.4)
    m = missing.float()
    expected = model.head(model.denoiser(m, model.extractor(clean, m), clean)).squeeze(1)
    torch.testing.assert_close(model.score(clean, missing), expected)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"method": "base"}, False),
        ({"method": "dropout"}, False),
        ({"method": "augment"}, True),
        ({"method": "augment", "mask_in_extractor": False}, False),
        ({"method": "asymdiff"}, True),
        ({"method": "asymdiff", "mask_in_extractor": False}, True),
    ],
)
def test_which_variants_are_told_what_is_missing(config: dict, told: bool) -> None:
    model = shaken(build(**config))
    x, none, all_missing = torch.randn(4, FIELDS * WIDTH), torch.zeros(4, FIELDS).bool(), torch.ones(4, FIELDS).bool()
    assert torch.equal(model.score(x, none), model.score(x, all_missing)) != told


@pytest.mark.parametrize("method", PARTS)
def test_training_reduces_the_loss(method: str) -> None:
    model, (clean, missing, label, weight, index) = build(method=method), samples(128)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    predictions = []
    for step in range(50):
        loss, parts = model(clean, missing, label, weight, index + step * 128)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # not the whole loss: the scale of L_recon is that of the latent, which training is free to widen
        predictions.append(sum(parts[name].item() for name in ("loss_main", "loss_aux") if name in parts))
    assert sum(predictions[-5:]) < 0.8 * sum(predictions[:5])
    accuracy = ((model.score(clean, missing) > 0).float() == label).float().mean()
    assert accuracy > 0.85


def test_initial_weights_depend_on_torchs_seed_alone() -> None:
    first, second = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_nothing_but_parameters_is_kept_in_a_checkpoint() -> None:
    model = build(forward={"pattern": "uniform"})
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch: SimpleNamespace) -> tuple[Tensor, Tensor]:
        return batch.vectors * self.scale, batch.missing


@pytest.fixture
def batch() -> SimpleNamespace:
    names = ("vectors", "missing", "label", "weight", "sample_index")
    return SimpleNamespace(**dict(zip(names, samples(), strict=True)))


def test_recommender_looks_up_and_diffuses(batch: SimpleNamespace) -> None:
    recommender = Recommender(Tables(), build())
    loss, parts = recommender(batch)
    expected, _ = recommender.diffusion(batch.vectors, batch.missing, batch.label, batch.weight, batch.sample_index)
    assert torch.equal(loss, expected)
    assert torch.equal(parts["loss"], expected)
    loss.backward()
    assert recommender.tables.scale.grad is not None


def test_recommender_scores_what_the_tables_give(batch: SimpleNamespace) -> None:
    recommender = Recommender(Tables(), shaken(build()))
    assert torch.equal(recommender.score(batch), recommender.diffusion.score(batch.vectors, batch.missing))


def test_a_pipeline_can_trace_the_recommender_down_to_its_two_parts() -> None:
    """TorchRec's pipelines trace the model symbolically to find the look-up that they start ahead of time."""

    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return module_qualified_name in ("tables", "diffusion")

    graph = Leaves().trace(Recommender(Tables(), build()))
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["tables", "diffusion"]


@pytest.mark.parametrize(
    "config",
    [{"method": "diffrec"}, {"weights": {"recon": -1}}, {"weights": {"rec": 1}}, {"denoiser_hidden": 0}, {"steps": 3}],
)
def test_wrong_settings(config: dict) -> None:
    with pytest.raises(ValidationError):
        DiffusionConfig.model_validate(config)


def test_every_setting_is_described() -> None:
    def undescribed(schema: dict) -> list[str]:
        found = [
            f"{schema.get('title')}.{name}"
            for name, setting in schema.get("properties", {}).items()
            if "description" not in setting and "const" not in setting
        ]
        return found + [name for inner in schema.get("$defs", {}).values() for name in undescribed(inner)]

    for config in (ModelConfig, DiffusionConfig):
        assert undescribed(config.model_json_schema()) == []


def test_needs_neither_torchrec_nor_scipy_to_import() -> None:
    program = (
        "import sys; sys.modules.update(torchrec=None, fbgemm_gpu=None, scipy=None); "
        "import asymdiffrec.diffusion.model, asymdiffrec.diffusion.extractors.build"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


@pytest.mark.parametrize("settings", [{"method": "base"}, {"method": "augment"}, {}, *SETTINGS.values()])
@pytest.mark.parametrize("name", EXTRACTORS)
def test_candidates_score_as_samples_of_their_own(name: str, settings: dict[str, Any]) -> None:
    model = shaken(build(name, **settings))
    clean, missing, *_ = samples()
    own = [1, FIELDS - 1]
    columns = torch.cat([torch.arange(WIDTH) + WIDTH * field for field in own])
    query = torch.arange(BATCH) % 3
    shared = clean[:3].index_fill(1, columns, 0.0)
    together = missing[:3][query].index_copy(1, torch.tensor(own), missing[:, own])
    candidates = Candidates(shared, query, clean[:, columns], columns)
    assert torch.equal(candidates.whole()[:, columns], clean[:, columns])
    assert torch.equal(candidates.whole()[4].index_fill(0, columns, 0.0), shared[1])
    with torch.no_grad():
        found, expected = model.score_candidates(candidates, together), model.score(candidates.whole(), together)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
