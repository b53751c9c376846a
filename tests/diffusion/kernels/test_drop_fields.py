"""The operator `drop_fields` on the CPU, and on a GPU if there is one, against a short reference."""

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
"""dtype of clean, and of both views if the operator returns both"""
SEED = 2**62 + 12345


def some_law(fields: int, cells: int = 1, patterns: int = 1) -> DropLaw:
    """Return a law whose probabilities and factors differ between patterns and fields."""
    shares = torch.arange(1, patterns + 1).cumsum(0) * 2**24 // (patterns * (patterns + 1) // 2)
    factors = 0.4 + torch.arange(patterns * fields).view(patterns, fields) % 5 / 3
    return DropLaw(torch.linspace(0.05, 0.95, cells + 1) ** 2, shares * 2.0**-24, factors)


def inputs(widths: list[int], batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return clean, missing and sample_index.

    bf16 represents the values and their sums exactly, because Triton's interpreter truncates where a GPU rounds.
    """
    generator = torch.Generator().manual_seed(batch + sum(widths))
    clean = torch.randint(-60, 61, (batch, sum(widths)), generator=generator).to(dtype) / 8
    missing = torch.rand(batch, len(widths), generator=generator) < 0.2
    return clean, missing, torch.randint(2**45, (batch,), generator=generator)


def reference(
    clean: Tensor, missing: Tensor, sample_index: Tensor, seed: int, law: DropLaw, widths: list[int]
) -> tuple[Tensor, Tensor]:
    """Return noisy and mask by the definition of the forward process."""
    draws = uniforms(seed, sample_index, lanes=1 + (len(widths) + 3) // 4)
    position = draws[:, 0, 0] * (len(law.quantiles) - 1)
    low, high = law.quantiles[position.long()], law.quantiles[position.long() + 1]
    pattern = (draws[:, 0, 1, None] >= law.pattern_cdf).sum(1)
    rate = ((low + position.frac() * (high - low))[:, None] * law.factors[pattern]).clamp(max=1)
    mask = missing | (draws[:, 1:].flatten(1)[:, : len(widths)] < rate)
    return clean.masked_fill(mask.repeat_interleave(torch.tensor(widths), 1), 0.0), mask


def move(device: str, *values: Tensor) -> list[Tensor]:
    """Return the tensors on a device."""
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
def test_views_mask_and_gradient(device, widths, batch, types, cells, patterns) -> None:
    dtype, both_as = types
    law, (clean, missing, samples) = some_law(len(widths), cells, patterns), inputs(widths, batch, dtype)
    noisy, mask = reference(clean, missing, samples, SEED, law, widths)
    expected = noisy if both_as is None else torch.cat([clean, noisy]).to(both_as)

    leaf, missing, samples = move(device, clean, missing, samples)
    leaf.requires_grad_()
    views, result_mask = drop_fields(
        leaf,
        missing,
        samples,
        SEED,
        DropLaw(*move(device, *law)),
        ColumnChunks(*move(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))),
        both_as=both_as,
    )
    assert not result_mask.requires_grad
    assert torch.equal(result_mask.cpu(), mask)
    assert torch.equal(views.detach().cpu(), expected)

    upstream = inputs([1, expected.shape[1]], len(expected))[0][:, 1:].to(expected.dtype)
    views.backward(upstream.to(device))
    noisy_gradient = upstream[-batch:].to(dtype).masked_fill(mask.repeat_interleave(torch.tensor(widths), 1), 0.0)
    total = noisy_gradient if both_as is None else upstream[:batch].to(dtype) + noisy_gradient
    assert torch.equal(leaf.grad.cpu(), total)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("widths", [[1], [3] * 1000, [16, 32] * 500])
def test_one_field_and_a_thousand(device: str, widths: list[int]) -> None:
    law, (clean, missing, samples) = some_law(len(widths)), inputs(widths, 20)
    expected = reference(clean, missing, samples, SEED, law, widths)
    result = drop_fields(
        *move(device, clean, missing, samples),
        SEED,
        DropLaw(*move(device, *law)),
        ColumnChunks(*move(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))),
    )
    assert all(torch.equal(a.cpu(), b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_strided_tensors(device: str) -> None:
    widths = [8, 4, 12]
    law, chunks = (
        DropLaw(*move(device, *some_law(3))),
        ColumnChunks(*move(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))),
    )
    clean, missing, samples = move(device, *inputs(widths, 40))
    expected = drop_fields(clean, missing, samples, SEED, law, chunks)
    strided = [torch.stack([x, x], dim=-1)[..., 0].requires_grad_(x.is_floating_point()) for x in (clean, missing)]
    result = drop_fields(*strided, torch.stack([samples, samples], 1)[:, 0], SEED, law, chunks)
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
    result[0].sum().backward()
    assert torch.equal(
        strided[0].grad, (result[1].repeat_interleave(torch.tensor(widths, device=device), 1) == 0).float()
    )


@pytest.mark.parametrize("device", DEVICES)
def test_large_sample_indices_and_negative_seeds(device: str) -> None:
    law, chunks = some_law(9), ColumnChunks.of(FieldLayout.from_widths([4] * 9))
    clean, missing, _ = inputs([4] * 9, 6)
    samples = torch.tensor([0, 1, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1])
    for seed in (0, 1, -1, -(2**63), 2**63 - 1):
        expected = reference(clean, missing, samples, seed, law, [4] * 9)
        result = drop_fields(
            *move(device, clean, missing, samples),
            seed,
            DropLaw(*move(device, *law)),
            ColumnChunks(*move(device, *chunks)),
        )
        assert all(torch.equal(a.cpu(), b) for a, b in zip(result, expected, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("both_as", [None, torch.bfloat16])
@pytest.mark.parametrize("stored_by", ["sample", "column"])
def test_torch_accepts_it_as_an_operator(device: str, both_as: torch.dtype | None, stored_by: str) -> None:
    widths = [8] * 9
    clean, missing, samples = move(device, *inputs(widths, 5))
    if stored_by == "column":
        clean, missing = (tensor.t().contiguous().t() for tensor in (clean, missing))
    law, chunks = move(device, *some_law(9)), move(device, *ColumnChunks.of(FieldLayout.from_widths(widths)))
    operator = torch.ops.asymdiffrec.drop_fields.default
    arguments = (clean.requires_grad_(), missing, samples, SEED, *law, *chunks, both_as or clean.dtype, bool(both_as))
    torch.library.opcheck(operator, arguments)
    packed = operator(*arguments)[2]
    gradient = torch.randn(len(clean) * (2 if both_as else 1), clean.shape[1], device=device)
    if stored_by == "column":
        gradient = gradient.t().contiguous().t()
    torch.library.opcheck(
        torch.ops.asymdiffrec.drop_fields_backward.default, (gradient, packed, *chunks, clean.dtype, bool(both_as))
    )


def test_compiled_as_one_graph() -> None:
    widths = [8] * 9
    clean, missing, samples = inputs(widths, 5)
    law, chunks = some_law(9), ColumnChunks.of(FieldLayout.from_widths(widths))

    def total(clean: Tensor) -> Tensor:
        views, mask = drop_fields(clean, missing, samples, SEED, law, chunks, both_as=torch.float32)
        return views.square().sum() + mask.sum()

    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    gradients = []
    for function in (total, compiled):
        leaf = clean.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 5), st.integers(1, 30))
def test_pack_puts_eight_fields_into_a_byte(batch: int, fields: int) -> None:
    mask = torch.rand(batch, fields, generator=torch.Generator().manual_seed(fields)) < 0.5
    packed = drop_fields_eager.pack(mask)
    assert packed.shape == (batch, (fields + 7) // 8)
    assert torch.equal(drop_fields_eager.unpack(packed, fields) == 1, mask)
    for n in range(8 * packed.shape[1]):
        expected = mask[:, n] if n < fields else torch.zeros(batch, dtype=torch.bool)
        assert torch.equal(packed[:, n // 8] >> n % 8 & 1 == 1, expected)
