from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.synthetic.ceiling import auc, observed_probability, posterior
from asymdiffrec.datasets.prepare.synthetic.dataset import FIELDS, prepare_synthetic, record
from asymdiffrec.datasets.prepare.synthetic.world import Log, World, choose, draw_log, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


@pytest.fixture(scope="module")
def log(world: World) -> Log:
    return draw_log(world, 60_000, np.random.default_rng(1))


def test_the_best_prediction_from_the_record_is_calibrated_in_every_slice_of_it(world: World, log: Log) -> None:
    """E[(p - E[p | record]) g(record)] = 0 for every function g of what was recorded."""
    rest = log.probability - observed_probability(world, log, np.random.default_rng(2))
    slices = {f"without {field}": missing for field, missing in log.missing.items()}
    for group, population in world.groups.items():
        slices[f"{group} dark"] = np.all([log.missing[field] for field in population.missing], axis=0)
    for unknown in ("user_id", "item_id"):
        for field, missing in log.missing.items():
            slices[f"{unknown} unknown, {field} missing"] = log.missing[unknown] & missing
            slices[f"{unknown} unknown, {field} recorded"] = log.missing[unknown] & ~missing
    assert np.abs(rest).max() > 0.1
    for name, chosen in slices.items():
        if chosen.sum() > 200:
            error = rest[chosen].std() / np.sqrt(chosen.sum())
            assert abs(rest[chosen].mean()) < 4 * error, name


@pytest.mark.parametrize("group", ["user", "item", "context"])
def test_the_posterior_is_bayes_rule_member_by_member(world: World, log: Log, group: str) -> None:
    population = world.groups[group]
    masks = np.stack([log.missing[field] for field in population.missing], axis=1)
    rows = np.concatenate([np.flatnonzero(masks.any(axis=1))[:20], np.flatnonzero(masks.all(axis=1))[:2]])
    values = {field: column.to_pylist() for field, column in population.columns.items()}
    found = posterior(world, group, log, rows)
    assert (found[np.arange(len(rows)), log.members[group][rows]] > 0).all()
    for row, chances in zip(rows, found, strict=True):
        member, mask = log.members[group][row], masks[row]
        expected = np.zeros(len(population.share))
        for other in range(len(expected)):
            recorded = 1.0
            for field, missing in zip(population.missing, mask, strict=True):
                chance = population.missing[field][other]
                recorded *= chance if missing else 1 - chance
                if missing:
                    continue
                if field == "history":
                    for item in log.history[row][log.history[row] >= 0]:
                        recorded *= world.history[population.kind[other], item]
                elif values[field][other] != values[field][member]:
                    recorded = 0.0
            whole = (1 - population.dark) * recorded + population.dark * mask.all()
            expected[other] = population.share[other] * whole
        np.testing.assert_allclose(chances, expected / expected.sum(), rtol=1e-9, atol=1e-15)


def test_fields_are_missing_at_random_together_and_depending_on_the_sample(world: World, log: Log) -> None:
    for group, population in world.groups.items():
        fields = list(population.missing)
        dark = np.all([log.missing[field] for field in fields], axis=0)
        assert dark.mean() == pytest.approx(population.dark, abs=0.005), group
    lit = ~np.all([log.missing[field] for field in world.groups["user"].missing], axis=0)
    assert log.missing["gender"][lit].mean() == pytest.approx(0.05, abs=0.01)
    age = world.groups["user"].columns["age"].to_numpy()[log.members["user"]]
    assert log.missing["income"][age < 24].mean() > 2 * log.missing["income"][(age > 30) & (age < 40)].mean()


def test_a_record_is_the_log_less_what_is_missing(world: World, log: Log) -> None:
    table = record(world, log)
    for field in FIELDS:
        recorded = table[field].combine_chunks()
        if field == "history":
            assert recorded.null_count == 0
            absent = recorded.value_lengths().to_numpy() == 0
        else:
            absent = ~recorded.is_valid().to_numpy(zero_copy_only=False)
        np.testing.assert_array_equal(absent, log.missing[field])
    lists = table["history"].to_pylist()
    row = int(np.flatnonzero(~log.missing["history"])[0])
    assert lists[row] == log.history[row][log.history[row] >= 0].tolist()
    hour, weekday = (table[name].to_numpy(zero_copy_only=False) for name in ("hour", "weekday"))
    known = ~np.isnan(hour) & ~np.isnan(weekday)
    stamps = table["timestamp"].to_numpy()
    np.testing.assert_array_equal(hour[known], stamps[known] // 3600 % 24)
    np.testing.assert_array_equal(weekday[known], (stamps[known] // 86400 + 3) % 7)
    assert abs(log.label.mean() - log.probability.mean()) < 0.01


def test_the_data_set_tells_its_ceiling_and_its_seed_tells_the_data_set(tmp_path: Path) -> None:
    profiles = [
        prepare_synthetic(tmp_path / name, rows=20_000, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert profiles[0]["rows"] == {"train": 16_000, "valid": 2000, "test": 2000}
    assert 0.7 < profiles[0]["ceiling"]["auc_observed"] < profiles[0]["ceiling"]["auc_complete"] < 0.95
    assert json.loads((tmp_path / "a/profile.json").read_text()) == profiles[0] == profiles[1] != profiles[2]
    tables = [[pq.read_table(tmp_path / name / split) for split in ("train", "test")] for name in "abc"]
    assert tables[0] == tables[1] != tables[2]
    assert tables[0][0].slice(0, 2000) != tables[0][1]
    for field, config in FIELDS.items():
        if config.get("hash", True) is False:
            cardinality = profiles[0]["fields"][field]["cardinality"]
            assert cardinality <= config["num_embeddings"]


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows: found 999; a synthetic log has at least 1000"):
        prepare_synthetic(tmp_path / "out", rows=999)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2).filter(lambda x: len({a for a, _ in x}) == 2))
def test_auc_equals_the_reference_with_ties(samples: list[tuple[bool, int]]) -> None:
    label, score = (np.array(column) for column in zip(*samples, strict=True))
    assert auc(label.astype(np.int8), score) == pytest.approx(roc_auc_score(label, score))


def test_choose_draws_from_the_distribution_it_is_told() -> None:
    distributions = np.array([[0.0, 0.25, 0.75, 0.0], [0.5, 0.0, 0.0, 0.5]])
    which = np.repeat([0, 1], 40_000)
    drawn = choose(distributions, which, np.random.default_rng(0))
    for place in (0, 1):
        share = np.bincount(drawn[which == place], minlength=4) / 40_000
        np.testing.assert_allclose(share, distributions[place], atol=0.01)
