"""The values that are computed from the training rows and saved as `statistics.yaml`."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from asymdiffrec.base import Config
from asymdiffrec.datasets.statistics.lookups import Lookups
from asymdiffrec.datasets.statistics.vocabulary import Vocabulary

MAX_KNOTS = 128
"""Upper limit for `numeric_bins`; a numeric field has at most MAX_KNOTS + 1 knots"""


class NumericStatistics(Config):
    """Statistics of one numeric field, after its transform, over the training rows that have a value.

    >>> NumericStatistics(mean=2.0, std=4.0, knots=[-2.0, 2.0, 6.0]).standardised_knots(2)
    [-1.0, 0.0, 1.0]
    """

    mean: float = 0.0
    std: float = Field(1.0, gt=0)
    knots: list[float] = Field(
        [],
        description="selected values in ascending order: each frequent value, and quantiles of the other values",
    )

    def standardised_knots(self, bins: int) -> list[float]:
        """Return the standardised edges of at most `bins` bins, evenly spaced in the list of knots.

        Knots that are equal in fp32 count once. The list is empty if `bins` is 0 or there are fewer than two knots.
        """
        if not bins or len(self.knots) < 2:
            return []
        positions = np.linspace(0, len(self.knots) - 1, min(bins + 1, len(self.knots))).round().astype(np.int64)
        scaled = (np.array(self.knots)[positions] - self.mean) / self.std
        edges: list[float] = np.unique(scaled.astype(np.float32)).tolist()
        return edges


class MissingPattern(Config):
    """A set of fields, and the number of training rows in which exactly these fields are missing."""

    missing: list[str]
    rows: int = Field(gt=0)


class Statistics(Config):
    """The content of `statistics.yaml`: everything that is computed from the training rows."""

    rows: dict[str, int] = Field(description="number of rows of each split")
    label_rate: float = Field(description="share of the training rows with label 1")
    numeric: dict[str, NumericStatistics] = Field(
        {}, description="mean, standard deviation and knots of each numeric field"
    )
    cardinalities: dict[str, int] = Field(
        {}, description="number of distinct ids of each id and id_list field; large numbers are estimates"
    )
    lookups: dict[str, Lookups] = Field(
        {}, description="frequency distribution of the ids of each id and id_list field"
    )
    vocabularies: dict[str, Vocabulary] = Field({}, description="the frequent ids of each field that has a min_count")
    missing_patterns: list[MissingPattern] = Field(
        [], description="the most frequent sets of fields that are missing together"
    )
