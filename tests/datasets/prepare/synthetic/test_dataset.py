"""The synthetic click log: its optimal scores, missing fields, and the data set that is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from asymdiffrec.base import InputError
from asymdiffrec.datasets.prepare.synthetic.click_model import (
    ClickLog,
    ClickModel,
    draw_categories,
    draw_log,
    make_click_model,
)
from asymdiffrec.datasets.prepare.synthetic.dataset import FIELDS, prepare_synthetic, recorded_table
from asymdiffrec.datasets.prepare.synthetic.optimal_scores import member_posterior, optimal_scores


@pytest.fixture(scope="module")
def model() -> ClickModel:
    return make_click_model(0)


@pytest.fixture(scope="module")
def log(model: ClickModel) -> ClickLog:
    return draw_log(model, 60_000, np.random.default_rng(1))


def test_optimal_scores_are_calibrated_for_every_set_of_samples(model: ClickModel, log: ClickLog) -> None:
    """E[(p - E[p | recorded fields]) g(recorded fields)] = 0 for every function g."""
    residual = log.probability - optimal_scores(model, log, np.random.default_rng(2))
    subsets = {f"without {field}": missing for field, missing in log.missing.items()}
    for group, population in model.groups.items():
        subsets[f"{group} outage"] = np.all([log.missing[field] for field in population.missing_probability], axis=0)
    for unknown in ("user_id", "item_id"):
        for field, missing in log.missing.items():
            subsets[f"{unknown} unknown, {field} missing"] = log.missing[unknown] & missing
            subsets[f"{unknown} unknown, {field} recorded"] = log.missing[unknown] & ~missing
    assert np.abs(residual).max() > 0.1
    for name, chosen in subsets.items():
        if chosen.sum() > 200:
            error = residual[chosen].std() / np.sqrt(chosen.sum())
            assert abs(residual[chosen].mean()) < 4 * error, name


@pytest.mark.parametrize("group", ["user", "item", "context"])
def test_member_posterior_is_bayes_rule_applied_to_each_member(model: ClickModel, log: ClickLog, group: str) -> None:
    population = model.groups[group]
    masks = np.stack([log.missing[field] for field in population.missing_probability], axis=1)
    rows = np.concatenate([np.flatnonzero(masks.any(axis=1))[:20], np.flatnonzero(masks.all(axis=1))[:2]])
    values = {field: column.to_pylist() for field, column in population.columns.items()}
    posterior = member_posterior(model, group, log, rows)
    assert (posterior[np.arange(len(rows)), log.members[group][rows]] > 0).all()
    for row, chances in zip(rows, posterior, strict=True):
        member, mask = log.members[group][row], masks[row]
        expected = np.zeros(len(population.probability))
        for other in range(len(expected)):
            recorded = 1.0
            for field, missing in zip(population.missing_probability, mask, strict=True):
                chance = population.missing_probability[field][other]
                recorded *= chance if missing else 1 - chance
                if missing:
                    continue
                if field == "history":
                    for item in log.history[row][log.history[row] >= 0]:
                        recorded *= model.history[population.cluster[other], item]
                elif values[field][other] != values[field][member]:
                    recorded = 0.0
            whole = (1 - population.outage_probability) * recorded + population.outage_probability * mask.all()
            expected[other] = population.probability[other] * whole
        np.testing.assert_allclose(chances, expected / expected.sum(), rtol=1e-9, atol=1e-15)


def test_fields_are_missing_independently_in_outages_and_depending_on_the_sample(
    model: ClickModel, log: ClickLog
) -> None:
    for group, population in model.groups.items():
        fields = list(population.missing_probability)
        outage = np.all([log.missing[field] for field in fields], axis=0)
        assert outage.mean() == pytest.approx(population.outage_probability, abs=0.005), group
    no_outage = ~np.all([log.missing[field] for field in model.groups["user"].missing_probability], axis=0)
    assert log.missing["gender"][no_outage].mean() == pytest.approx(0.05, abs=0.01)
    age = model.groups["user"].columns["age"].to_numpy()[log.members["user"]]
    assert log.missing["income"][age < 24].mean() > 2 * log.missing["income"][(age > 30) & (age < 40)].mean()


def test_recorded_table_has_the_values_of_the_log_except_missing_fields(model: ClickModel, log: ClickLog) -> None:
    table = recorded_table(model, log)
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
    both_recorded = ~np.isnan(hour) & ~np.isnan(weekday)
    stamps = table["timestamp"].to_numpy()
    np.testing.assert_array_equal(hour[both_recorded], stamps[both_recorded] // 3600 % 24)
    np.testing.assert_array_equal(weekday[both_recorded], (stamps[both_recorded] // 86400 + 3) % 7)
    assert abs(log.label.mean() - log.probability.mean()) < 0.01


def test_the_seed_determines_the_data_set_and_the_profile_has_the_optimal_auc(tmp_path: Path) -> None:
    profiles = [
        prepare_synthetic(tmp_path / name, rows=20_000, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert profiles[0]["rows"] == {"train": 16_000, "valid": 2000, "test": 2000}
    assert 0.7 < profiles[0]["optimal_auc"]["observed"] < profiles[0]["optimal_auc"]["complete"] < 0.95
    assert json.loads((tmp_path / "a/profile.json").read_text()) == profiles[0] == profiles[1] != profiles[2]
    tables = [[pq.read_table(tmp_path / name / split) for split in ("train", "test")] for name in "abc"]
    assert tables[0] == tables[1] != tables[2]
    assert tables[0][0].slice(0, 2000) != tables[0][1]
    for field, config in FIELDS.items():
        if config.get("hash", True) is False:
            cardinality = profiles[0]["fields"][field]["cardinality"]
            assert cardinality <= config["num_embeddings"]


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows: found 999; a synthetic log needs at least 1000 rows"):
        prepare_synthetic(tmp_path / "out", rows=999)


def test_draw_categories_draws_from_the_chosen_distribution() -> None:
    distributions = np.array([[0.0, 0.25, 0.75, 0.0], [0.5, 0.0, 0.0, 0.5]])
    which = np.repeat([0, 1], 40_000)
    drawn = draw_categories(distributions, which, np.random.default_rng(0))
    for index in (0, 1):
        share = np.bincount(drawn[which == index], minlength=4) / 40_000
        np.testing.assert_allclose(share, distributions[index], atol=0.01)
