"""An MLP of all fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from asymdiffrec.diffusion.extractors.base import Extractor, ExtractorConfig, Sizes
from asymdiffrec.diffusion.layers import MaskMLP, Vectors


class MLPConfig(ExtractorConfig):
    """An MLP of all field vectors and the mask."""

    name: Literal["mlp"] = "mlp"
    hidden: Sizes = Field(default=(128,), description="widths of the hidden layers before the latent")


class MLP(Extractor):
    """The extractor z = MLP([x, s])."""

    takes_candidates = True

    def __init__(self, widths: Sequence[int], mask_width: int, *, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.latent_dim = latent
        self.deep = MaskMLP(sum(widths), mask_width, hidden, latent)

    def forward(self, x: Vectors, mask: Tensor) -> Tensor:
        """Return the latent [B, Z], see `Extractor.forward`."""
        return self.deep(x, mask)
