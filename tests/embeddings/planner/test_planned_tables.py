"""Look-up statistics of the data, as a planner uses them."""

import itertools

import numpy as np
import pytest

from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.datasets.statistics.lookups import Lookups
from asymdiffrec.datasets.statistics.statistics import Statistics
from asymdiffrec.embeddings.planner.planned_tables import RowReuse, pooling_factors, row_reuse

USER = Lookups(per_sample=0.9, repeats=[(1, 1000), (50, 20)])
SEEN = Lookups(per_sample=3.0, repeats=[(2, 500), (400, 5)])


def test_a_cache_of_all_rows_misses_none_and_an_empty_cache_misses_all() -> None:
    reuse = RowReuse([USER], 1020, 10_000)
    assert reuse.expected_miss_rate(0.0) == pytest.approx(1.0)
    assert reuse.expected_miss_rate(1.0) == 0.0
    rates = [reuse.expected_miss_rate(share) for share in np.linspace(0, 1, 30)]
    assert all(more >= less for more, less in itertools.pairwise(rates))


def test_distinct_rows_of_a_step_match_random_draws() -> None:
    shares = np.repeat([1.0, 50.0], [1000, 20])
    rng = np.random.default_rng(0)
    for samples in (100, 2000):
        draws = [len(set(rng.choice(1020, round(0.9 * samples), p=shares / shares.sum()))) for _ in range(50)]
        assert RowReuse([USER], 1020, samples).expected_lookups == pytest.approx(np.mean(draws), rel=0.03)


def test_fields_that_share_a_table_share_its_cache() -> None:
    both, one = RowReuse([USER, SEEN], 10**6, 4000), RowReuse([USER], 10**6, 4000)
    assert one.expected_lookups < both.expected_lookups <= 1525
    assert RowReuse([USER, SEEN], 100, 4000).expected_lookups == 100


def schema(statistics: Statistics | None):
    fields = {
        "user": {"type": "id", "num_embeddings": 1000},
        "seen": {"type": "id_list", "num_embeddings": 1000, "expected_length": 7},
    }
    return FieldsConfig.model_validate({"fields": fields}).to_schema(statistics)


def test_statistics_take_precedence_over_expected_length() -> None:
    assert pooling_factors(schema(None), ["user", "seen"]) == [1.0, 7.0]
    assert row_reuse(schema(None), ["user"], 1000, 64) is None
    statistics = Statistics(rows={"train": 9}, label_rate=0.5, lookups={"user": USER, "seen": SEEN})
    assert pooling_factors(schema(statistics), ["user", "seen"]) == [0.9, 3.0]
    assert row_reuse(schema(statistics), ["user"], 1000, 64) is not None
