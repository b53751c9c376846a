"""What an extractor is, and the settings that all of ours share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from asymdiffrec.base import Config, InputError

Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class Extractor(nn.Module, ABC):
    """h: a base model up to its latent representation.

    A subclass takes (widths, mask_width, **options): D_n of each field, the number of columns of s, and its own
    settings by keyword; and sets `latent_dim` (Z). What it makes of a row must not depend on the other rows, which may
    be samples and the same samples with fields dropped.
    """

    latent_dim: int
    takes_candidates = False
    """Whether x may come as `Candidates`, where samples have columns in common"""

    @abstractmethod
    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """z [B, Z], linear at the end, of x [B, sum D_n] and s [B, mask_width], 0 wide where a method gives none."""


class ExtractorConfig(Config):
    """Settings of every extractor of ours."""

    latent: PositiveInt = Field(default=64, description="width Z of the latent representation")


def common_width(widths: Sequence[int], name: str) -> int:
    """The D that all fields share, for an extractor that multiplies one field's vector with another's."""
    for width in widths:
        if width != widths[0]:
            raise InputError(
                f"extractor {name}: found fields of widths {widths[0]} and {width}, allowed is one width for all"
            )
    return widths[0]
