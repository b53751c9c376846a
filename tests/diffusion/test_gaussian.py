"""The normal noise of DiffRec on the latent."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from asymdiffrec.diffusion.gaussian import GaussianProcess


def test_noise_is_normal_keeps_the_variance_and_depends_only_on_the_sample() -> None:
    process = GaussianProcess(torch.tensor([0.3, 0.3]), seed=3)
    z, index = torch.randn(20_000, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20_000) + 2**33
    noisy, t = process(z, index)
    assert t.unique().tolist() == pytest.approx([0.3])
    noise = (noisy - (1 - t[:, None]).sqrt() * z) / t[:, None].sqrt()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert torch.corrcoef(noise.t()).fill_diagonal_(0).abs().max() < 0.03
    assert noisy.var() == pytest.approx(1.0, abs=0.02)
    again, _ = process(z[7:9], index[7:9])
    assert torch.equal(again, noisy[7:9])


def test_t_follows_its_law() -> None:
    _, t = GaussianProcess(torch.tensor([0.1, 0.6]), seed=3)(torch.zeros(20_000, 1), torch.arange(20_000))
    assert stats.kstest(t.numpy(), stats.uniform(0.1, 0.5).cdf).pvalue > 0.01
