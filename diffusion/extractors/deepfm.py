"""DeepFM: Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction" (IJCAI 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from asymdiffrec.diffusion.extractors.base import Extractor, ExtractorConfig, Sizes, common_width
from asymdiffrec.diffusion.layers import MaskLinear, MaskMLP, Vectors, whole


class DeepFMConfig(ExtractorConfig):
    """DeepFM: first-order terms, products of every two fields and a perceptron, added. Fields of one width."""

    name: Literal["deepfm"]
    hidden: Sizes = Field(default=(128,), description="widths of the hidden layers of the deep part")


class DeepFM(Extractor):
    """z = first([x, s]) + second(FM(x)) + deep([x, s]): the paper's sum of three parts, with Z outputs in place of one.

    The paper's first-order weight of an id is here a linear function of its vector, and its sum over the D products of
    FM is here weighed for each output (the paper's is the case of all ones).
    """

    takes_candidates = True

    def __init__(self, widths: Sequence[int], mask_width: int, *, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.latent_dim = latent
        self.width = common_width(widths, "deepfm")
        self.first = MaskLinear(sum(widths), mask_width, latent)
        self.second = nn.Linear(self.width, latent, bias=False)
        self.deep = MaskMLP(sum(widths), mask_width, hidden, latent)

    def forward(self, x: Vectors, s: Tensor) -> Tensor:
        pairs = pair_products(whole(x).unflatten(1, (-1, self.width)))
        return self.first(x, s) + self.second(pairs) + self.deep(x, s)


def pair_products(vectors: Tensor) -> Tensor:
    """Sum over pairs i < j of v_i * v_j, elementwise: ((sum v)^2 - sum v^2) / 2; vectors [B, N, D] -> [B, D].

    Source: Rendle, "Factorization Machines" (ICDM 2010), lemma 3.1.
    """
    return (vectors.sum(1).square() - vectors.square().sum(1)) / 2
