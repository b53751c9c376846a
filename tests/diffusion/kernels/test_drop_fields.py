"""The operator as torch sees it, on this machine's devices, against a reference of a few lines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asymdiffrec.diffusion.kernels import drop_fields_eager
from asymdiffrec.diffusion.kernels.drop_fields import ColumnChunks, DropLaw, drop_fields
from asymdiffrec.diffusion.philox import uniforms
from asymdiffrec.field_layout import FieldLayout

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]
TYPES = [
    (torch.float32, None),
    (torch.bfloat16, None),
    (torch.float64, None),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float64, torch.float64),
]
"""Of clean, and of both views where they are asked for."""
SEED = 2**62 + 12345


def law_of(fields: int, cells: int = 1, patterns: int = 1) -> DropLaw:
    """Some law; shares and factors differ from pattern to pattern and from field to field."""
    shares = torch.arange(1, patterns + 1).cumsum(0) * 2**24 // (patterns * (patterns + 1) // 2)
    factors = 0.4 + torch.arange(patterns * fields).view(patterns, fields) % 5 / 3
    return DropLaw(torch.linspace(0.05, 0.95, cells + 1) ** 2, shares * 2.0**-24, factors)


def inputs(widths: list[int], batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """clean, missing and sample_index; values whose sums bf16 holds: Triton's interpreter truncates."""
    generator = torch.Generator().manual_seed(batch + sum(widths))
    clean = torch.randint(-60, 61, (batch, sum(widths)), generator=generator).to(dtype) / 8
    missing = torch.rand(batch, len(widths), generator=generator) < 0.2
    return clean, missing, torch.randint(2**45, (batch,), generator=generator)


def reference(
    clean: Tensor, missing: Tensor, sample_index: Tensor, seed: int, law: DropLaw, widths: list[int]
) -> tuple[Tensor, Tensor]:
    draws = uniforms(seed, sample_index, lanes=1 + (len(widths) + 3) // 4)
    place = draws[:, 0, 0] * (len(law.quantiles) - 1)
    low, high = law.quantiles[place.long()], law.quantiles[place.long() + 1]
    pattern = (draws[:, 0, 1, None] >= law.reach).sum(1)
    rate = ((low + place.frac() * (high - low))[:, None] * law.factors[pattern]).clamp(max=1)
    step = missing | (draws[:, 1:].flatten(1)[:, : len(widths)] < rate)
    return clean.masked_fill(step.repeat_interleave(torch.tensor(widths), 1), 0.0), step


def on(device: str, *values: Tensor) -> list[Tensor]:
    return [value.to(device) for value in values]


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=20) | st.lists(st.sampled_from([16, 32, 64]), min_size=1),
    batch=st.sampled_from([0, 1, 33, 130]),
    types=st.sampled_from(TYPES),
    cells=st.sampled_from([1, 4]),
    patterns=st.sampled_from([1, 2, 7]),
)
def test_views_step_and_gradient(device, widths, batch, types, cells, patterns) -> None:
    dtype, both_as = types
    law, (clean, missing, samples) = law_of(len(widths), cells, patterns), inputs(widths, batch, dtype)
    noisy, step = reference(clean, missing, samples, SEED, law, widths)
    expected = noisy if both_as is None else torch.cat([clean, noisy]).to(both_as)

    leaf, missing, samples = on(device, clean, missing, samples)
    leaf.requires_grad_()
    views, found_step = drop_fields(
        leaf,
        missing,
        samples,
        SEED,
        DropLaw(*on(device, *law)),
        ColumnChunks(*on(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))),
        both_as=both_as,
    )
    assert not found_step.requires_grad
    assert torch.equal(found_step.cpu(), step)
    assert torch.equal(views.detach().cpu(), expected)

    upstream = inputs([1, expected.shape[1]], len(expected))[0][:, 1:].to(expected.dtype)
    views.backward(upstream.to(device))
    kept = upstream[-batch:].to(dtype).masked_fill(step.repeat_interleave(torch.tensor(widths), 1), 0.0)
    total = kept if both_as is None else upstream[:batch].to(dtype) + kept
    assert torch.equal(leaf.grad.cpu(), total)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("widths", [[1], [3] * 1000, [16, 32] * 500])
def test_one_field_and_a_thousand(device: str, widths: list[int]) -> None:
    law, (clean, missing, samples) = law_of(len(widths)), inputs(widths, 20)
    expected = reference(clean, missing, samples, SEED, law, widths)
    found = drop_fields(
        *on(device, clean, missing, samples),
        SEED,
        DropLaw(*on(device, *law)),
        ColumnChunks(*on(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))),
    )
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_what_does_not_lie_in_one_piece(device: str) -> None:
    widths = [8, 4, 12]
    law, chunks = (
        DropLaw(*on(device, *law_of(3))),
        ColumnChunks(*on(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))),
    )
    clean, missing, samples = on(device, *inputs(widths, 40))
    expected = drop_fields(clean, missing, samples, SEED, law, chunks)
    strided = [torch.stack([x, x], dim=-1)[..., 0].requires_grad_(x.is_floating_point()) for x in (clean, missing)]
    found = drop_fields(*strided, torch.stack([samples, samples], 1)[:, 0], SEED, law, chunks)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    found[0].sum().backward()
    assert torch.equal(
        strided[0].grad, (found[1].repeat_interleave(torch.tensor(widths, device=device), 1) == 0).float()
    )


@pytest.mark.parametrize("device", DEVICES)
def test_samples_far_apart_and_negative_seeds(device: str) -> None:
    law, chunks = law_of(9), ColumnChunks.of(FieldLayout.from_widths([4] * 9))
    clean, missing, _ = inputs([4] * 9, 6)
    samples = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1])
    for seed in (0, 1, -1, -(2**63), 2**63 - 1):
        expected = reference(clean, missing, samples, seed, law, [4] * 9)
        found = drop_fields(
            *on(device, clean, missing, samples), seed, DropLaw(*on(device, *law)), ColumnChunks(*on(device, *chunks))
        )
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("both_as", [None, torch.bfloat16])
@pytest.mark.parametrize("by", ["sample", "column"])
def test_torch_takes_it_for_an_operator(device: str, both_as: torch.dtype | None, by: str) -> None:
    widths = [8] * 9
    clean, missing, samples = on(device, *inputs(widths, 5))
    if by == "column":
        clean, missing = (tensor.t().contiguous().t() for tensor in (clean, missing))
    law, chunks = on(device, *law_of(9)), on(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))
    operator = torch.ops.asymdiffrec.drop_fields.default
    arguments = (clean.requires_grad_(), missing, samples, SEED, *law, *chunks, both_as or clean.dtype, bool(both_as))
    torch.library.opcheck(operator, arguments)
    bits = operator(*arguments)[2]
    gradient = torch.randn(len(clean) * (2 if both_as else 1), clean.shape[1], device=device)
    if by == "column":
        gradient = gradient.t().contiguous().t()
    torch.library.opcheck(
        torch.ops.asymdiffrec.drop_fields_backward.default, (gradient, bits, *chunks, clean.dtype, bool(both_as))
    )


def test_compiled_as_one_graph() -> None:
    widths = [8] * 9
    clean, missing, samples = inputs(widths, 5)
    law, chunks = law_of(9), ColumnChunks.of(FieldLayout.from_widths(widths))

    def step(clean: Tensor) -> Tensor:
        views, step = drop_fields(clean, missing, samples, SEED, law, chunks, both_as=torch.float32)
        return views.square().sum() + step.sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (step, compiled):
        leaf = clean.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 5), st.integers(1, 30))
def test_bits_of_eight_fields_a_byte(batch: int, fields: int) -> None:
    step = torch.rand(batch, fields, generator=torch.Generator().manual_seed(fields)) < 0.5
    packed = drop_fields_eager.pack(step)
    assert packed.shape == (batch, (fields + 7) // 8)
    assert torch.equal(drop_fields_eager.unpack(packed, fields) == 1, step)
    for n in range(8 * packed.shape[1]):
        expected = step[:, n] if n < fields else torch.zeros(batch, dtype=torch.bool)
        assert torch.equal(packed[:, n // 8] >> n % 8 & 1 == 1, expected)
