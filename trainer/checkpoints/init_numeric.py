"""Take the curve of a numeric field from another run, and convert it to the statistics and knots of the new run.

A curve (see `NumericEmbeddings`) is a function of the standardised value, with bins between standardised knots. If the
mean, the standard deviation or the knots of the two runs differ, unchanged parameters would give another function of
the value in the data. So the parameters are converted such that the function stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.numeric_embeddings import field_layout
from asymdiffrec.trainer.checkpoints.blocks import Block
from asymdiffrec.trainer.job import Job

NUMERIC = "tables.concat.numeric."
"""Prefix of the names of the parameters of `NumericEmbeddings`: direction, bias and bins"""

KNOT_TOLERANCE = 1e-6
"""Relative distance up to which two knots count as equal: knots are rounded to fp32"""


@dataclass(frozen=True)
class Curve:
    """The scale of a field's curve, and the location of its parameters in the tensors of all numeric fields."""

    index: int
    """Index of the field among the numeric fields"""
    first_column: int
    """Start of the field in the concatenated vectors of all numeric fields"""
    width: int
    mean: float
    std: float
    knots: list[float]
    """Standardised knots, ascending; with fewer than two knots the curve is a line"""

    @property
    def num_bins(self) -> int:
        """Number of bins between the knots."""
        return max(0, len(self.knots) - 1)


def curves(schema: Schema, job: Job) -> dict[str, Curve]:
    """Return the curve of each numeric field by name."""
    layout = field_layout(schema, job.tables).select(list(schema.numeric)) if schema.numeric else None
    result: dict[str, Curve] = {}
    first_column = 0
    for index, (name, width) in enumerate(zip(schema.numeric, layout.widths if layout else (), strict=True)):
        statistics = schema.numeric_statistics(name)
        knots = statistics.standardised_knots(job.tables.numeric_bins)
        result[name] = Curve(index, first_column, width, statistics.mean, statistics.std, knots)
        first_column += width
    return result


@dataclass(frozen=True)
class CurveChange:
    """The change from the `old` curve (of the other run) to the `new` curve. Both have the same width."""

    old: Curve
    new: Curve

    @property
    def scale(self) -> float:
        """Increase of the old standardised value when the new standardised value increases by 1."""
        return self.new.std / self.old.std

    @property
    def shift(self) -> float:
        """Old standardised value at which the new standardised value is 0."""
        return (self.new.mean - self.old.mean) / self.old.std

    @cached_property
    def _knots(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Old and new knots, both on the scale of the old standardised values, float64."""
        old, new = (torch.tensor(curve.knots, dtype=torch.float64) for curve in (self.old, self.new))
        return old, self.scale * new + self.shift

    @property
    def keeps_knots(self) -> bool:
        """True if every old knot is also a new knot: then the new curve can be exactly the old function."""
        if not self.old.num_bins:
            return True
        if not self.new.num_bins:
            return False
        old, new = self._knots
        distance = (old[:, None] - new[None, :]).abs().amin(dim=1)
        return bool((distance <= KNOT_TOLERANCE * (1 + old.abs() + abs(self.shift))).all())

    def note(self) -> str:
        """Return a note on the change for the report; empty if the parameters are taken unchanged."""
        if not self.keeps_knots:
            if not self.new.num_bins:
                return "re-expressed as a line through the ends of the old curve: this job has no numeric_bins"
            return "re-expressed, and interpolated between the new knots, because some old knots are missing"
        if (self.old.mean, self.old.std) != (self.new.mean, self.new.std):
            return "re-expressed with the new mean and standard deviation: the same function"
        return "re-expressed on the new knots: the same function" if self.old.knots != self.new.knots else ""

    def apply(
        self, direction: torch.Tensor, bias: torch.Tensor, bins: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Convert parameters of the old curve to direction [D], bias [D] and bins [new bins, D] of the new curve.

        The new bins interpolate the old piecewise-linear part linearly between the new knots. This is exact if the new
        knots contain all old knots. All arithmetic is in fp64; equal statistics and knots give equal parameters.
        """
        direction, bias, bins = direction.double(), bias.double(), bins.double()
        new_bins = bins.new_zeros(self.new.num_bins, self.new.width)
        if self.old.num_bins:
            old, new = self._knots
            if self.new.num_bins:
                # Share of each old bin that lies below each new knot, [new knots, old bins].
                passed = ((new[:, None] - old[:-1]) / old.diff()).clamp(0, 1)
                new_bins = passed.diff(dim=0) @ bins
                bias = bias + passed[0] @ bins
            else:
                slope = bins.sum(0) / (old[-1] - old[0])
                direction, bias = direction + slope, bias - old[0] * slope
        return self.scale * direction, bias + self.shift * direction, new_bins


class CurveReader:
    """The transfer of one curve: reads the old parameters from a checkpoint, stores the new parameters in a model."""

    def __init__(self, change: CurveChange) -> None:
        self._change = change
        width, num_bins = change.old.width, change.old.num_bins
        self._direction, self._bias = torch.empty(width), torch.empty(width)
        self._bins = torch.empty(1, num_bins, width)

    def blocks(self) -> list[Block]:
        """Return the blocks to read before `store`."""
        old = self._change.old
        blocks = [
            Block(f"dense.{NUMERIC}direction", (old.first_column,), self._direction),
            Block(f"dense.{NUMERIC}bias", (old.first_column,), self._bias),
        ]
        return blocks + ([Block(f"dense.{NUMERIC}bins", (old.index, 0, 0), self._bins)] if old.num_bins else [])

    def store(self, dense: Mapping[str, torch.Tensor]) -> None:
        """Write the new curve into the dense parameters of a model, by name."""
        new = self._change.new
        direction, bias, bins = self._change.apply(self._direction, self._bias, self._bins[0])
        columns = slice(new.first_column, new.first_column + new.width)
        dense[f"{NUMERIC}direction"][columns].copy_(direction)
        dense[f"{NUMERIC}bias"][columns].copy_(bias)
        if new.num_bins:
            dense[f"{NUMERIC}bins"][new.index, : new.num_bins, : new.width].copy_(bins)
