"""The forward process: fields of a sample are dropped at random, and then look exactly like missing ones.

Field n has an absorption time tau_n ~ U(0, 1) and is dropped when tau_n < rate_n. With rate_n = t for every field and
t ~ U(0, 1), the number of dropped fields is uniform on {0..N} and every subset of that size is equally likely: the
process of Zhu et al. (CIKM 2025), one random field a step, in continuous time and without a sort.

Randomness is `philox.uniforms`: lane 0 word 0 is t, lane 0 word 1 picks a pattern, lane 1 + n // 4 word n % 4 is tau_n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from asymdiffrec.base import Config, InputError
from asymdiffrec.diffusion.kernels.drop_fields import ColumnChunks, DropLaw, drop_fields
from asymdiffrec.field_layout import FieldLayout


class UniformTime(Config):
    """t ~ U(low, high)."""

    law: Literal["uniform"] = "uniform"
    low: float = Field(default=0.0, ge=0, le=1, description="smallest t")
    high: float = Field(default=0.8, ge=0, le=1, description="largest t; at t = 1 every field is dropped")

    @model_validator(mode="after")
    def _ordered(self) -> UniformTime:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self

    def quantiles(self) -> Tensor:
        return torch.tensor([self.low, self.high])


class PointTime(Config):
    """t = value: each field is dropped independently with that probability."""

    law: Literal["point"]
    value: float = Field(ge=0, le=1, description="the one t")

    def quantiles(self) -> Tensor:
        return torch.tensor([self.value, self.value])


class BetaTime(Config):
    """t ~ Beta(a, b)."""

    law: Literal["beta"]
    a: float = Field(gt=0, description="first shape parameter; small values favour few dropped fields")
    b: float = Field(gt=0, description="second shape parameter; small values favour many dropped fields")

    def quantiles(self) -> Tensor:
        from scipy.special import betaincinv  # only this law needs scipy

        return torch.as_tensor(
            betaincinv(self.a, self.b, torch.linspace(0, 1, 4097, dtype=torch.float64).numpy())
        ).float()


ALWAYS = PointTime(law="point", value=1)


def _law(value: Any) -> str:
    return value.get("law", "uniform") if isinstance(value, dict) else getattr(value, "law", "")


class ForwardConfig(Config):
    """How fields are dropped in training."""

    pattern: Literal["uniform", "empirical", "outage"] = Field(
        default="uniform",
        description="uniform: every field alike, to the extent t; empirical: the fields that are missing together in a "
        "sample drawn from the data; outage: one whole group of fields, each group equally often",
    )
    time: Annotated[
        Annotated[UniformTime, Tag("uniform")] | Annotated[BetaTime, Tag("beta")] | Annotated[PointTime, Tag("point")],
        Discriminator(_law),
    ] = Field(
        default=UniformTime(),
        description="law of t, how far the process has run; the patterns empirical and outage act at t = 1",
    )


class Patterns(NamedTuple):
    """Which fields are missing together in the data, and how often."""

    missing: Tensor
    """[P, N] bool, distinct rows"""
    counts: Tensor
    """[P] int64, samples with that row; the complete ones count too"""


class ForwardProcess(nn.Module):
    """`drop_fields` for one layout of fields and one config; built once, keeps nothing from call to call.

    seed: key of the random numbers; drops: a factor >= 0 a field (default 1), smaller for fields that should be dropped
    less often; patterns: for the pattern empirical. The pattern outage drops the layout's groups. Raises ValueError
    when an argument does not fit the others, and InputError for the pattern empirical without patterns.
    """

    def __init__(
        self,
        layout: FieldLayout,
        config: ForwardConfig,
        *,
        seed: int,
        drops: Sequence[float] | None = None,
        patterns: Patterns | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        num_fields = layout.num_fields
        factors = torch.ones(num_fields) if drops is None else torch.tensor(drops, dtype=torch.float32)
        if len(factors) != num_fields or not (factors >= 0).all():
            raise ValueError(f"drop factors: found {drops}, allowed is one number >= 0 for each of {num_fields} fields")
        match config.pattern:
            case "uniform":
                time, patterns = config.time, _group_patterns([""] * num_fields)
            case "outage":
                time, patterns = ALWAYS, _group_patterns(layout.groups)
            case "empirical":
                time, patterns = ALWAYS, _checked(patterns, num_fields)
        law = DropLaw(time.quantiles(), _reach(patterns.counts), patterns.missing * factors)
        for name, value in (law._asdict() | ColumnChunks.of(layout)._asdict()).items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def at_rates(cls, layout: FieldLayout, rates: Sequence[float], seed: int) -> ForwardProcess:
        """Every present field n dropped independently with probability rates_n, as evaluation with missing fields does.

        What is dropped at some rate is among what is dropped at any higher one, so that rates compare on like samples.
        """
        return cls(layout, ForwardConfig(time=ALWAYS), seed=seed, drops=rates)

    def forward(
        self, clean: Tensor, missing: Tensor, sample_index: Tensor, *, both_as: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """`drop_fields` of clean [B, sum D_n], missing [B, N] bool and sample_index [B] int64."""
        law = DropLaw(*(self.get_buffer(name) for name in DropLaw._fields))
        chunks = ColumnChunks(*(self.get_buffer(name) for name in ColumnChunks._fields))
        return drop_fields(clean, missing, sample_index, self.seed, law, chunks, both_as=both_as)


def _reach(counts: Tensor) -> Tensor:
    """The patterns' cumulated shares [P], rounded up to multiples of 2**-24.

    fp32 holds these, and uniforms are made of them: the draw has no rounding.
    """
    return (-(-counts.cumsum(0) * 2**24 // counts.sum())).float() * 2.0**-24


def _group_patterns(groups: Sequence[str]) -> Patterns:
    names = list(dict.fromkeys(groups))
    rows = [[group == name for group in groups] for name in names]
    return Patterns(torch.tensor(rows), torch.ones(len(names), dtype=torch.int64))


def _checked(patterns: Patterns | None, num_fields: int) -> Patterns:
    if patterns is None:
        raise InputError("pattern empirical needs the patterns of missing fields of the data, found none")
    missing, counts = patterns
    if missing.shape != (len(counts), num_fields) or not (counts >= 0).all() or not counts.sum() > 0:
        raise ValueError(
            f"patterns: found shape {list(missing.shape)} and {len(counts)} counts, {int(counts.sum())} in all; "
            f"allowed are rows of {num_fields} fields and a count each, not all 0"
        )
    return patterns
