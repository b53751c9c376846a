"""The forward process: drop fields of a sample at random. A dropped field looks exactly like a missing field.

Field n has an absorption time tau_n ~ U(0, 1) and is dropped if tau_n < rate_n. With rate_n = t for every field and
t ~ U(0, 1), the number of dropped fields is uniform on {0..N}, and all subsets of the same size are equally likely. The
process of Zhu et al. (CIKM 2025) drops one random field per step; this module uses the same process in continuous time,
which needs no sort.

Random numbers come from `philox.uniforms`: word 0 of lane 0 gives t, word 1 of lane 0 draws a pattern, and word n % 4
of lane 1 + n // 4 is tau_n.
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
    """The distribution t ~ U(low, high)."""

    law: Literal["uniform"] = "uniform"
    low: float = Field(default=0.0, ge=0, le=1, description="smallest t")
    high: float = Field(default=0.8, ge=0, le=1, description="largest t; at t = 1 every field is dropped")

    @model_validator(mode="after")
    def _ordered(self) -> UniformTime:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high})")
        return self

    def quantiles(self) -> Tensor:
        """Return the quantile function of t, see `DropLaw`."""
        return torch.tensor([self.low, self.high])


class PointTime(Config):
    """The constant t = value: each field is dropped independently with this probability."""

    law: Literal["point"]
    value: float = Field(ge=0, le=1, description="value of t")

    def quantiles(self) -> Tensor:
        """Return the quantile function of t, see `DropLaw`."""
        return torch.tensor([self.value, self.value])


class BetaTime(Config):
    """The distribution t ~ Beta(a, b)."""

    law: Literal["beta"]
    a: float = Field(gt=0, description="first shape parameter; small values favour few dropped fields")
    b: float = Field(gt=0, description="second shape parameter; small values favour many dropped fields")

    def quantiles(self) -> Tensor:
        """Return the quantile function of t on BETA_CELLS + 1 points, see `DropLaw`."""
        from scipy.special import betaincinv  # only this law needs scipy

        grid = torch.linspace(0, 1, BETA_CELLS + 1, dtype=torch.float64)
        return torch.as_tensor(betaincinv(self.a, self.b, grid.numpy())).float()


BETA_CELLS = 4096
"""Number of cells of the grid on which the quantile function of a beta distribution is interpolated; a power of two"""
FULL_TIME = PointTime(law="point", value=1)
"""The constant t = 1: every field of the drawn pattern is dropped"""


def _law(value: Any) -> str:
    return value.get("law", "uniform") if isinstance(value, dict) else getattr(value, "law", "")


class ForwardConfig(Config):
    """The `forward:` section: how the forward process drops fields in training."""

    pattern: Literal["uniform", "empirical", "outage"] = Field(
        default="uniform",
        description="which fields are dropped: uniform: each field with probability t; empirical: the fields that are "
        "missing in a random training sample; outage: all fields of a random group, each group with the same "
        "probability",
    )
    time: Annotated[
        Annotated[UniformTime, Tag("uniform")] | Annotated[BetaTime, Tag("beta")] | Annotated[PointTime, Tag("point")],
        Discriminator(_law),
    ] = Field(
        default=UniformTime(),
        description="distribution of the noise level t; the patterns empirical and outage use t = 1",
    )


class MissingPatterns(NamedTuple):
    """Sets of fields that are missing together in the training data, and their frequencies."""

    missing: Tensor
    """[P, N] bool, true where a field is missing; all rows differ, and a row may have no missing field"""
    counts: Tensor
    """[P] int64, number of samples with each pattern"""


class ForwardProcess(nn.Module):
    """The forward process of one field layout: `drop_fields` with the distribution that a config describes.

    seed: key of the random numbers.
    drop_factors: a factor >= 0 for the drop rate of each field, by default 1.
    patterns: needed for the pattern empirical. The pattern outage drops the groups of the layout.

    Raises ValueError if the sizes of the arguments differ, and InputError for the pattern empirical without patterns.

    >>> process = ForwardProcess(FieldLayout.from_widths([2, 2]), ForwardConfig(), seed=1)
    >>> noisy, mask = process(torch.ones(3, 4), torch.zeros(3, 2, dtype=torch.bool), torch.arange(3))
    >>> noisy.shape, mask.shape
    (torch.Size([3, 4]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        layout: FieldLayout,
        config: ForwardConfig,
        *,
        seed: int,
        drop_factors: Sequence[float] | None = None,
        patterns: MissingPatterns | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        num_fields = layout.num_fields
        factors = torch.ones(num_fields) if drop_factors is None else torch.tensor(drop_factors, dtype=torch.float32)
        if len(factors) != num_fields or not (factors >= 0).all():
            raise ValueError(
                f"drop factors: found {drop_factors}, allowed is one number >= 0 for each of {num_fields} fields"
            )
        match config.pattern:
            case "uniform":
                time, patterns = config.time, _group_patterns([""] * num_fields)
            case "outage":
                time, patterns = FULL_TIME, _group_patterns(layout.groups)
            case "empirical":
                time, patterns = FULL_TIME, _checked_patterns(patterns, num_fields)
        law = DropLaw(time.quantiles(), _cdf(patterns.counts), patterns.missing * factors)
        for name, value in (law._asdict() | ColumnChunks.of(layout)._asdict()).items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def at_rates(cls, layout: FieldLayout, rates: Sequence[float], seed: int) -> ForwardProcess:
        """Return the process for evaluation: it drops each field n independently with probability rates_n.

        A field that is dropped from a sample at some rate is also dropped at every higher rate. This makes results at
        different rates comparable.
        """
        return cls(layout, ForwardConfig(time=FULL_TIME), seed=seed, drop_factors=rates)

    def forward(
        self, clean: Tensor, missing: Tensor, sample_index: Tensor, *, both_as: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return noisy [B, sum D_n] and mask [B, N] for clean [B, sum D_n], missing [B, N] and sample_index [B] int64.

        If `both_as` is a dtype, the result has both views, see `drop_fields`.
        """
        law = DropLaw(*(self.get_buffer(name) for name in DropLaw._fields))
        chunks = ColumnChunks(*(self.get_buffer(name) for name in ColumnChunks._fields))
        return drop_fields(clean, missing, sample_index, self.seed, law, chunks, both_as=both_as)


def _cdf(counts: Tensor) -> Tensor:
    """Return the cumulative probabilities [P] of patterns, rounded up to multiples of 2**-24.

    Uniforms are multiples of 2**-24 too, and fp32 represents these numbers exactly, so comparisons are exact.
    """
    return (-(-counts.cumsum(0) * 2**24 // counts.sum())).float() * 2.0**-24


def _group_patterns(groups: Sequence[str]) -> MissingPatterns:
    names = list(dict.fromkeys(groups))
    rows = [[group == name for group in groups] for name in names]
    return MissingPatterns(torch.tensor(rows), torch.ones(len(names), dtype=torch.int64))


def _checked_patterns(patterns: MissingPatterns | None, num_fields: int) -> MissingPatterns:
    if patterns is None:
        raise InputError(
            "diffusion.forward.pattern: empirical needs the patterns of missing fields, but statistics.yaml has no "
            "patterns; prepare the data again, or use uniform or outage"
        )
    missing, counts = patterns
    if missing.shape != (len(counts), num_fields) or not (counts >= 0).all() or not counts.sum() > 0:
        raise ValueError(
            f"patterns: found shape {list(missing.shape)} and {len(counts)} counts with sum {int(counts.sum())}; "
            f"allowed are rows of {num_fields} fields, with one count >= 0 for each row, not all 0"
        )
    return patterns
