"""DLRM: Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from asymdiffrec.diffusion.extractors.base import Extractor, ExtractorConfig, Sizes, common_width
from asymdiffrec.diffusion.layers import MaskMLP, Vectors, expanded, mlp


class DLRMConfig(ExtractorConfig):
    """DLRM: an MLP, then dot products of field pairs, then a second MLP. All fields have the same width."""

    name: Literal["dlrm"]
    bottom: Sizes = Field(default=(128,), description="widths of the hidden layers of the bottom MLP")
    top: Sizes = Field(default=(128,), description="widths of the hidden layers of the top MLP")


class DLRM(Extractor):
    """The extractor z = top([d, dot products of all pairs from d, v_1 .. v_N]) with d = bottom([x, s]).

    In the paper numeric fields have no vectors, and the bottom MLP reads only the numeric fields. In this class all
    fields have vectors, and the bottom MLP reads all of x and the mask.
    """

    takes_candidates = True

    def __init__(
        self, widths: Sequence[int], mask_width: int, *, bottom: Sequence[int], top: Sequence[int], latent: int
    ) -> None:
        super().__init__()
        self.latent_dim = latent
        self.width = common_width(widths, "dlrm")
        vectors = 1 + len(widths)
        self.bottom = MaskMLP(sum(widths), mask_width, bottom, self.width)
        self.top = mlp([self.width + vectors * (vectors - 1) // 2, *top, latent])

    def forward(self, x: Vectors, mask: Tensor) -> Tensor:
        """Return the latent [B, Z], see `Extractor.forward`."""
        dense = self.bottom(x, mask)
        vectors = torch.cat([dense, expanded(x)], dim=1).unflatten(1, (-1, self.width))
        return self.top(torch.cat([dense, pair_dots(vectors)], dim=1))


def pair_dots(vectors: Tensor) -> Tensor:
    """Return the dot products v_i . v_j of all pairs i < j: [B, N (N - 1) / 2] for vectors [B, N, D]."""
    count = vectors.shape[1]
    first, second = torch.triu_indices(count, count, offset=1, device=vectors.device)
    return (vectors @ vectors.mT).flatten(1).index_select(1, first * count + second)
