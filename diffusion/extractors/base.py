"""The interface of an extractor, and the settings that all extractors of this project share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from asymdiffrec.base import Config, InputError

Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
"""Widths of one or more hidden layers"""


class Extractor(nn.Module, ABC):
    """The extractor h: a base model up to its latent representation.

    The constructor of a subclass takes (widths, mask_width, **options): the width D_n of each field, the width of the
    mask, and the settings of the subclass by keyword. The constructor sets `latent_dim` (Z). The latent of a row must
    not depend on other rows, because a batch may have both views of the same samples.

    >>> class Sum(Extractor):
    ...     def __init__(self, widths, mask_width):
    ...         super().__init__()
    ...         self.latent_dim = 1
    ...
    ...     def forward(self, x, mask):
    ...         return x.sum(1, keepdim=True)
    """

    latent_dim: int
    takes_candidates = False
    """True if `forward` accepts `Candidates` as x"""

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the latent [B, Z], without an activation at the end, for x [B, sum D_n] and mask [B, mask_width].

        mask_width is 0 if the method does not give the mask to the extractor.
        """


class ExtractorConfig(Config):
    """The settings that all built-in extractors have."""

    latent: PositiveInt = Field(default=64, description="width Z of the latent representation")


def common_width(widths: Sequence[int], name: str) -> int:
    """Return the width D that all fields share, for an extractor that multiplies the vectors of two fields.

    Raises InputError if the widths differ; `name` is the name of the extractor.
    """
    for width in widths:
        if width != widths[0]:
            raise InputError(
                f"extractor {name}: found fields of widths {widths[0]} and {width}, allowed is one width for all "
                "fields; remove embedding_dim from the fields, or use extractor mlp or dcn"
            )
    return widths[0]
