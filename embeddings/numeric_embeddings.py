"""Embeddings of numeric fields: a piecewise-linear curve for each field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from asymdiffrec.datasets.schema import Schema
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.field_layout import FieldLayout


def field_layout(schema: Schema, config: TablesConfig) -> FieldLayout:
    """Return the layout of the field vectors, in the order of the schema."""
    fields = schema.fields.values()
    widths = tuple(config.width(field) for field in fields)
    return FieldLayout(tuple(schema.fields), widths, tuple(field.group for field in fields))


def numeric_embeddings(schema: Schema, config: TablesConfig) -> NumericEmbeddings:
    """Return the embeddings of all numeric fields, in the order of the schema."""
    layout = field_layout(schema, config).select(list(schema.numeric))
    knots = [schema.numeric_statistics(name).standardised_knots(config.numeric_bins) for name in schema.numeric]
    return NumericEmbeddings(layout, config.init_std, knots)


class NumericEmbeddings(nn.Module):
    """A curve for each numeric field: value * direction + bias + bins; zero if the value is missing.

    Bin k between two knots adds clamp((value - knot_k) / (knot_k+1 - knot_k), 0, 1) * bins_k: the piecewise-linear
    encoding of Gorishniy et al., "On Embeddings for Numerical Features" (NeurIPS 2022). The line, value * direction +
    bias, continues beyond the knots. Bins start at zero, so the curve of a field starts as a line.

    >>> module = NumericEmbeddings(FieldLayout.from_widths([4, 4]), std=0.05, knots=[[-1.0, 0.0, 1.0], []])
    >>> module(torch.randn(8, 2), torch.zeros(8, 2, dtype=torch.bool)).shape
    torch.Size([8, 8])
    """

    field_of_column: torch.Tensor
    bin_start: torch.Tensor
    bin_length: torch.Tensor
    used_columns: torch.Tensor | None

    def __init__(self, layout: FieldLayout, std: float, knots: Sequence[Sequence[float]] = ()) -> None:
        """Create the parameters from torch's random numbers.

        layout: the layout of the numeric fields. knots: the knots of each field, ascending. A field with fewer than two
        knots gets a line without bins.
        """
        super().__init__()
        widths = layout.widths
        self.direction = nn.Parameter(torch.randn(layout.total_width) * std)
        self.bias = nn.Parameter(torch.zeros(layout.total_width))
        self.register_buffer("field_of_column", layout.field_of_column, persistent=False)
        num_bins = max(0, max((len(of_field) - 1 for of_field in knots), default=0))
        self.bins = nn.Parameter(torch.zeros(len(widths), num_bins, max(widths))) if num_bins else None
        # Fields with fewer bins are padded with bins of infinite length: `passed` is 0 there, so they add nothing.
        start, length = torch.zeros(len(widths), num_bins), torch.full((len(widths), num_bins), math.inf)
        for field, of_field in enumerate(knots):
            if len(of_field) > 1:
                positions = torch.tensor(of_field)
                start[field, : len(positions) - 1] = positions[:-1]
                length[field, : len(positions) - 1] = positions.diff()
        self.register_buffer("bin_start", start, persistent=False)
        self.register_buffer("bin_length", length, persistent=False)
        used = torch.cat([torch.arange(width) + max(widths) * field for field, width in enumerate(widths)])
        self.register_buffer("used_columns", used if len(set(widths)) > 1 else None, persistent=False)

    def forward(self, values: torch.Tensor, missing: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [B, sum D_n] of `values`, zero where `missing`. Inputs: [B, numeric fields]."""
        embedding = values.index_select(1, self.field_of_column) * self.direction + self.bias
        if self.bins is not None:
            passed = ((values[:, :, None] - self.bin_start) / self.bin_length).clamp(0, 1)
            # Flattening and reshaping only fixes the strides of the gradient. Without it and with one field, the
            # gradient has another stride than the parameter in the first dimension (size 1): DDP copies it and warns.
            bins = self.bins.flatten().view_as(self.bins)
            curves = torch.einsum("bnk,nkd->bnd", passed, bins).flatten(1)
            embedding = embedding + (curves if self.used_columns is None else curves.index_select(1, self.used_columns))
        # index_select is several times as fast on floats as on bools.
        return embedding * (~missing).to(embedding.dtype).index_select(1, self.field_of_column)
