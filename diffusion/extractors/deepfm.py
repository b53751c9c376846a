"""DeepFM: Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction" (IJCAI 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from asymdiffrec.diffusion.extractors.base import Extractor, ExtractorConfig, Sizes, common_width
from asymdiffrec.diffusion.layers import MaskLinear, MaskMLP, Vectors, expanded


class DeepFMConfig(ExtractorConfig):
    """DeepFM: the sum of first-order terms, products of field pairs and an MLP. All fields have the same width."""

    name: Literal["deepfm"]
    hidden: Sizes = Field(default=(128,), description="widths of the hidden layers of the deep part")


class DeepFM(Extractor):
    """The extractor z = first([x, s]) + second(FM(x)) + deep([x, s]), a sum of three parts as in the paper.

    Differences from the paper: each part has Z outputs, not one. The first-order weight of an id is a linear
    function of its vector. The D products of FM are combined with trained weights for each output; the paper adds them.
    """

    takes_candidates = True

    def __init__(self, widths: Sequence[int], mask_width: int, *, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.latent_dim = latent
        self.width = common_width(widths, "deepfm")
        self.first = MaskLinear(sum(widths), mask_width, latent)
        self.second = nn.Linear(self.width, latent, bias=False)
        self.deep = MaskMLP(sum(widths), mask_width, hidden, latent)

    def forward(self, x: Vectors, mask: Tensor) -> Tensor:
        """Return the latent [B, Z], see `Extractor.forward`."""
        pairs = pair_products(expanded(x).unflatten(1, (-1, self.width)))
        return self.first(x, mask) + self.second(pairs) + self.deep(x, mask)


def pair_products(vectors: Tensor) -> Tensor:
    """Return the sum over pairs i < j of v_i * v_j, elementwise: [B, D] for vectors [B, N, D].

    This sum equals ((sum v)^2 - sum v^2) / 2.

    Source: Rendle, "Factorization Machines" (ICDM 2010), lemma 3.1.
    """
    return (vectors.sum(1).square() - vectors.square().sum(1)) / 2
