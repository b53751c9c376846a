"""The forward process: which fields it drops, how often, and the vectors of dropped fields."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from torch import Tensor

from asymdiffrec.base import InputError
from asymdiffrec.diffusion.forward import BetaTime, ForwardConfig, ForwardProcess, MissingPatterns
from asymdiffrec.diffusion.kernels import drop_fields_eager
from asymdiffrec.diffusion.philox import uniforms
from asymdiffrec.field_layout import FieldLayout

SEED = 20_250_701
FULL_RANGE = {"time": {"law": "uniform", "low": 0.0, "high": 1.0}}


def process(num_fields: int, config: dict, groups: list[str] | None = None, **options) -> ForwardProcess:
    layout = FieldLayout.from_widths([1] * num_fields, groups)
    return ForwardProcess(layout, ForwardConfig.model_validate(config), seed=SEED, **options)


def dropped(process: ForwardProcess, num_fields: int, samples: int) -> Tensor:
    """Return which fields [samples, num_fields] the process drops from complete samples."""
    present = torch.zeros(samples, num_fields, dtype=torch.bool)
    return process(torch.ones(samples, num_fields), present, torch.arange(samples))[1]


def bits(x: Tensor) -> Tensor:
    """Return the bytes of a tensor, by which -0 and +0 differ and NaN equals itself."""
    return x.contiguous().view(torch.uint8)


def test_number_of_dropped_fields_is_uniform_and_subsets_of_a_size_are_equally_likely() -> None:
    """The probability of each of the 2^N subsets is 1 / ((N + 1) binomial(N, k)), which implies both statements."""
    num_fields, samples = 5, 120_000
    drop = dropped(process(num_fields, FULL_RANGE), num_fields, samples)
    counts = torch.bincount((drop * 2 ** torch.arange(num_fields)).sum(1), minlength=2**num_fields)
    sizes = torch.tensor([subset.bit_count() for subset in range(2**num_fields)])
    expected = samples / (num_fields + 1) / torch.bincount(sizes)[sizes]
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 13), st.integers(-(2**63), 2**63 - 1), st.data())
def test_mask_follows_the_contract_of_lanes_and_words(num_fields: int, seed: int, data: st.DataObject) -> None:
    drops = data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=num_fields, max_size=num_fields))
    samples = torch.tensor(data.draw(st.lists(st.integers(0, 2**62), min_size=1, max_size=9)))
    missing = torch.rand(len(samples), num_fields, generator=torch.Generator().manual_seed(len(samples))) < 0.2
    forward = ForwardProcess(FieldLayout.from_widths([1] * num_fields), ForwardConfig(), seed=seed, drop_factors=drops)
    _, mask = forward(torch.ones(len(samples), num_fields), missing, samples)
    draws = uniforms(seed, samples, lanes=5)
    for n in range(num_fields):
        time, tau = draws[:, 0, 0] * torch.tensor(0.8), draws[:, 1 + n // 4, n % 4]
        assert torch.equal(mask[:, n], missing[:, n] | (tau < (drops[n] * time).clamp(max=1)))


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=7),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_dropped_looks_like_missing_bit_for_bit(widths: list[int], dtype: torch.dtype) -> None:
    """A dropped column becomes +0 even if it is NaN, infinite or -0; other columns do not change."""
    generator = torch.Generator().manual_seed(sum(widths))
    batch, columns = 17, sum(widths)
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1.5, -2.0], dtype=dtype)
    clean = odd[torch.randint(len(odd), (batch, columns), generator=generator)]
    missing = torch.rand(batch, len(widths), generator=generator) < 0.3
    layout = FieldLayout.from_widths(widths)
    forward = ForwardProcess(layout, ForwardConfig.model_validate(FULL_RANGE), seed=SEED)
    noisy, mask = forward(clean, missing, torch.arange(batch))
    assert (mask | ~missing).all()
    expected = clean.masked_fill(mask.repeat_interleave(torch.tensor(widths), 1), 0.0)
    assert torch.equal(bits(noisy), bits(expected))
    again, same_mask = ForwardProcess.at_rates(layout, [0.0] * len(widths), SEED)(clean, mask, torch.arange(batch))
    assert torch.equal(bits(noisy), bits(again))
    assert torch.equal(mask, same_mask)


def test_empty_and_strided_batches() -> None:
    forward = ForwardProcess(FieldLayout.from_widths([2, 4]), ForwardConfig(), seed=SEED)
    noisy, mask = forward(torch.empty(0, 6), torch.empty(0, 2, dtype=torch.bool), torch.empty(0, dtype=torch.int64))
    assert noisy.shape == (0, 6)
    assert mask.shape == (0, 2)
    clean, missing, samples = torch.randn(6, 20).t(), torch.zeros(2, 20, dtype=torch.bool).t(), torch.arange(40)[::2]
    strided = forward(clean, missing, samples)
    packed = forward(clean.contiguous(), missing.contiguous(), samples.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(strided, packed, strict=True))


@settings(deadline=None, derandomize=True)
@given(st.permutations(range(12)), st.integers(0, 12))
def test_mask_of_a_sample_depends_neither_on_the_batch_nor_on_the_order(order: list[int], cut: int) -> None:
    widths = [3, 5, 4]
    layout = FieldLayout.from_widths(widths)
    forward = ForwardProcess(layout, ForwardConfig.model_validate(FULL_RANGE), seed=SEED)
    clean, missing, samples = (
        torch.arange(144.0).view(12, 12),
        torch.zeros(12, 3, dtype=torch.bool),
        torch.arange(2**40, 2**40 + 12),
    )
    whole = forward(clean, missing, samples)
    for part in (torch.tensor(order[:cut], dtype=torch.int64), torch.tensor(order[cut:], dtype=torch.int64)):
        for result, expected in zip(forward(clean[part], missing[part], samples[part]), whole, strict=True):
            assert torch.equal(result, expected[part])


def test_only_columns_that_are_not_masked_get_a_gradient() -> None:
    forward = ForwardProcess(FieldLayout.from_widths([4, 2, 4]), ForwardConfig.model_validate(FULL_RANGE), seed=SEED)
    x = torch.randn(9, 10, dtype=torch.float64, requires_grad=True)
    missing, samples = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)) < 0.3, torch.arange(9)
    noisy, mask = forward(x, missing, samples)
    upstream = torch.where(mask.repeat_interleave(torch.tensor([4, 2, 4]), 1), float("nan"), 3.0).double()
    noisy.backward(upstream)
    assert torch.equal(x.grad, upstream.nan_to_num(0.0))
    assert torch.autograd.gradcheck(lambda x: forward(x, missing, samples)[0], x)


def test_drop_factors_scale_the_rate() -> None:
    """A field is dropped with probability min(1, drop * t)."""
    samples, drops = 40_000, [0.0, 0.5, 1.0, 3.0]
    point = {"time": {"law": "point", "value": 0.6}}
    drop = dropped(process(4, point, drop_factors=drops), 4, samples)
    assert drop[:, 0].sum() == 0
    assert drop[:, 3].all()
    for n, rate in ((1, 0.3), (2, 0.6)):
        assert stats.binomtest(int(drop[:, n].sum()), samples, rate).pvalue > 0.01


def test_higher_rates_drop_the_fields_of_lower_rates_and_more() -> None:
    layout = FieldLayout.from_widths([1] * 9)
    at = {rate: dropped(ForwardProcess.at_rates(layout, [rate] * 9, SEED), 9, 2_000) for rate in (0.0, 0.1, 0.5, 1.0)}
    assert not at[0.0].any()
    assert at[1.0].all()
    assert (at[0.5] | ~at[0.1]).all()
    assert stats.binomtest(int(at[0.1].sum()), at[0.1].numel(), 0.1).pvalue > 0.01


def test_outage_drops_exactly_one_whole_group() -> None:
    groups = ["user", "item", "user", "context", "item", "user"]
    drop = dropped(process(6, {"pattern": "outage"}, groups=groups), 6, 30_000)
    rows, counts = drop.unique(dim=0, return_counts=True)
    assert {tuple(row) for row in rows.tolist()} == {tuple(g == name for g in groups) for name in groups}
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    names = list(dict.fromkeys(groups))
    pick = (uniforms(SEED, torch.arange(30_000), 1)[:, 0, 1] * 3).long()
    assert all(drop[i, groups.index(names[pick[i]])] for i in range(0, 30_000, 100))


def test_drop_factors_apply_to_outages() -> None:
    drop = dropped(
        process(4, {"pattern": "outage"}, groups=["a", "a", "b", "b"], drop_factors=[1, 0.5, 1, 0]), 4, 20_000
    )
    assert torch.equal(drop[:, 0], ~drop[:, 2])
    assert not drop[:, 3].any()
    assert stats.binomtest(int(drop[:, 1].sum()), int(drop[:, 0].sum()), 0.5).pvalue > 0.01


def test_empirical_patterns_are_as_frequent_as_in_the_data() -> None:
    patterns = MissingPatterns(
        torch.tensor([[0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]]).bool(), torch.tensor([60, 25, 0, 15])
    )
    drop = dropped(process(3, {"pattern": "empirical"}, patterns=patterns), 3, 50_000)
    counts = [(drop == pattern).all(1).sum().item() for pattern in patterns.missing]
    assert counts[2] == 0
    assert sum(counts) == 50_000
    assert stats.chisquare([counts[0], counts[1], counts[3]], [30_000, 12_500, 7_500]).pvalue > 0.01


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.5), (1.0, 3.0), (5.0, 1.2), (20.0, 20.0)])
def test_beta_law_is_within_a_cell_of_scipy_s(a: float, b: float) -> None:
    uniform = uniforms(SEED, torch.arange(20_000), 1)[:, 0, 0]
    time = drop_fields_eager.noise_level(BetaTime(law="beta", a=a, b=b).quantiles(), uniform)
    assert abs(stats.beta(a, b).cdf(time.double().numpy()) - uniform.double().numpy()).max() <= 1 / 4096
    assert stats.kstest(time.double().numpy(), stats.beta(a, b).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"drop_factors": [1.0, 1.0]}, "one number >= 0 for each of 3 fields"),
        ({}, {"drop_factors": [1.0, -1.0, 1.0]}, "one number >= 0 for each of 3 fields"),
        ({}, {"drop_factors": [1.0, float("nan"), 1.0]}, "one number >= 0 for each of 3 fields"),
        (
            {"pattern": "empirical"},
            {"patterns": MissingPatterns(torch.zeros(2, 4, dtype=torch.bool), torch.tensor([1, 1]))},
            "rows of 3 fields",
        ),
        (
            {"pattern": "empirical"},
            {"patterns": MissingPatterns(torch.zeros(1, 3, dtype=torch.bool), torch.tensor([0]))},
            "not all 0",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(config: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        process(3, config, **options)


def test_the_pattern_empirical_needs_patterns_of_the_data() -> None:
    with pytest.raises(InputError, match=r"empirical needs the patterns of missing fields, but statistics\.yaml"):
        process(3, {"pattern": "empirical"})


@pytest.mark.parametrize(
    "config",
    [
        {"time": {"law": "uniform", "low": 0.9, "high": 0.1}},
        {"time": {"law": "point", "value": 1.5}},
        {"time": {"law": "beta", "a": 0, "b": 1}},
        {"time": {"law": "normal"}},
        {"pattern": "diagonal"},
        {"patern": "uniform"},
    ],
)
def test_values_out_of_range_are_refused(config: dict) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(ForwardConfig).validate_python(config)
