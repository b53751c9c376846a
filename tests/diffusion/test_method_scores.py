"""Scores of every method: complete and incomplete samples, and candidates with shared columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asymdiffrec.diffusion.extractors.build import EXTRACTORS
from asymdiffrec.diffusion.layers import Candidates
from tests.diffusion.small_model import BATCH, FIELDS, OTHER_CONFIGS, WIDTH, build, build_trained, samples


@pytest.mark.parametrize("config", [{"noise": "gaussian"}, {"space": "fields"}], ids=["gaussian", "symmetric"])
def test_denoiser_does_not_change_complete_samples(config: dict[str, Any]) -> None:
    model = build_trained(**config)
    clean, *_ = samples(missing_rate=0.0)
    complete = torch.zeros(BATCH, FIELDS, dtype=torch.bool)
    assert torch.equal(model.score(clean, complete), model.logit(model.latent(clean, complete)))


def test_complete_samples_are_scored_exactly_by_extractor_and_head() -> None:
    model = build_trained()
    clean, _, _, _, _ = samples(missing_rate=0.0)
    complete = torch.zeros(BATCH, FIELDS, dtype=torch.bool)
    expected = model.head(model.extractor(clean, torch.zeros(BATCH, FIELDS))).squeeze(1)
    assert torch.equal(model.score(clean, complete), expected)


def test_incomplete_samples_are_scored_through_the_denoiser() -> None:
    model = build_trained()
    clean, missing, _, _, _ = samples(missing_rate=0.4)
    m = missing.float()
    expected = model.head(model.denoiser(m, model.extractor(clean, m), clean)).squeeze(1)
    torch.testing.assert_close(model.score(clean, missing), expected)


@pytest.mark.parametrize(
    ("config", "sees_mask"),
    [
        ({"method": "base"}, False),
        ({"method": "dropout"}, False),
        ({"method": "augment"}, True),
        ({"method": "augment", "mask_in_extractor": False}, False),
        ({"method": "asymdiff"}, True),
        ({"method": "asymdiff", "mask_in_extractor": False}, True),
    ],
)
def test_which_methods_see_the_mask(config: dict[str, Any], sees_mask: bool) -> None:
    model = build_trained(**config)
    x, none, all_missing = torch.randn(4, FIELDS * WIDTH), torch.zeros(4, FIELDS).bool(), torch.ones(4, FIELDS).bool()
    assert torch.equal(model.score(x, none), model.score(x, all_missing)) != sees_mask


@pytest.mark.parametrize("config", [{"method": "base"}, {"method": "augment"}, {}, *OTHER_CONFIGS.values()])
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_candidates_score_as_separate_samples(extractor: str, config: dict[str, Any]) -> None:
    model = build_trained(extractor, **config)
    clean, missing, *_ = samples()
    differing = [1, FIELDS - 1]
    columns = torch.cat([torch.arange(WIDTH) + WIDTH * field for field in differing])
    query = torch.arange(BATCH) % 3
    shared = clean[:3].index_fill(1, columns, 0.0)
    mask = missing[:3][query].index_copy(1, torch.tensor(differing), missing[:, differing])
    candidates = Candidates(shared, query, clean[:, columns], columns)
    assert torch.equal(candidates.expand()[:, columns], clean[:, columns])
    assert torch.equal(candidates.expand()[4].index_fill(0, columns, 0.0), shared[1])
    with torch.no_grad():
        scores, expected = model.score_candidates(candidates, mask), model.score(candidates.expand(), mask)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_initial_weights_depend_only_on_torch_s_seed() -> None:
    first, second = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_checkpoints_hold_only_parameters() -> None:
    model = build(forward={"pattern": "uniform"})
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
