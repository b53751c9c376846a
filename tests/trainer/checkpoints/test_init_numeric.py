"""The curve of a numeric field keeps its function when mean, standard deviation or knots change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.datasets.statistics.statistics import NumericStatistics
from asymdiffrec.embeddings.numeric_embeddings import NumericEmbeddings
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.trainer.checkpoints.init_numeric import Curve, CurveChange

WIDTH, BINS = 4, 64


def curve(statistics: NumericStatistics, bins: int = BINS) -> Curve:
    return Curve(0, 0, WIDTH, statistics.mean, statistics.std, statistics.standardised_knots(bins))


def embeddings(curve: Curve, parameters: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> NumericEmbeddings:
    """Return the module of one field with these parameters, in fp64."""
    module = NumericEmbeddings(FieldLayout.from_widths([WIDTH]), 1.0, [curve.knots]).double()
    direction, bias, bins = parameters
    with torch.no_grad():
        module.direction.copy_(direction)
        module.bias.copy_(bias)
        if module.bins is not None:
            module.bins[0].copy_(bins)
    return module


def values_of(module: NumericEmbeddings, curve: Curve, values: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of transformed, not yet standardised values [B]."""
    standardised = ((values - curve.mean) / curve.std)[:, None]
    return module(standardised, torch.zeros(len(values), 1, dtype=torch.bool)).detach()


def drawn(curve: Curve, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((WIDTH,), (WIDTH,), (curve.num_bins, WIDTH))
    direction, bias, bins = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return direction, bias, bins


KNOTS = st.lists(st.integers(-50, 50), max_size=12, unique=True).map(sorted)
MEANS, STDS = st.floats(-20, 20), st.floats(0.1, 20)


@given(
    old_knots=KNOTS,
    more_knots=KNOTS,
    means=st.tuples(MEANS, MEANS),
    stds=st.tuples(STDS, STDS),
    seed=st.integers(0, 99),
)
@settings(derandomize=True, deadline=None)
def test_the_function_is_kept_if_the_new_knots_contain_the_old_ones(
    old_knots: list[int], more_knots: list[int], means: tuple[float, float], stds: tuple[float, float], seed: int
) -> None:
    new_knots = sorted({*old_knots, *more_knots})
    old, new = (
        curve(NumericStatistics(mean=mean, std=std, knots=list(map(float, knots))))
        for mean, std, knots in zip(means, stds, (old_knots, new_knots), strict=True)
    )
    change = CurveChange(old, new)
    assert change.keeps_knots
    parameters = drawn(old, seed)
    values = torch.cat([torch.linspace(-80, 80, 97, dtype=torch.float64), torch.tensor(new_knots).double()])
    before = values_of(embeddings(old, parameters), old, values)
    after = values_of(embeddings(new, change.apply(*parameters)), new, values)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)  # knots are rounded to fp32


@given(knots=st.lists(st.floats(-50, 50), min_size=2, max_size=12), mean=MEANS, std=STDS, seed=st.integers(0, 99))
@settings(derandomize=True, deadline=None)
def test_equal_statistics_give_equal_parameters_bit_for_bit(
    knots: list[float], mean: float, std: float, seed: int
) -> None:
    same = curve(NumericStatistics(mean=mean, std=std, knots=sorted(knots)))
    parameters = [part.float() for part in drawn(same, seed)]
    change = CurveChange(same, same)
    assert change.note() == ""
    for taken, given_ in zip(change.apply(*parameters), parameters, strict=True):
        assert torch.equal(taken.float(), given_)


def test_other_knots_interpolate_the_function() -> None:
    """The curve is exact at new knots inside the old range, and between neighbouring knots elsewhere."""
    old = curve(NumericStatistics(mean=3.0, std=2.0, knots=np.linspace(0, 10, 11).tolist()))
    new = curve(NumericStatistics(mean=4.0, std=1.0, knots=np.linspace(0, 10, 8).tolist()))
    change = CurveChange(old, new)
    assert not change.keeps_knots
    assert "interpolated" in change.note()
    parameters = drawn(old, 1)
    old_module, new_module = embeddings(old, parameters), embeddings(new, change.apply(*parameters))
    knots = torch.linspace(0, 10, 8, dtype=torch.float64)
    at_knots = values_of(old_module, old, knots)
    torch.testing.assert_close(values_of(new_module, new, knots), at_knots, rtol=1e-4, atol=1e-4)
    middle = values_of(new_module, new, (knots[1:] + knots[:-1]) / 2)
    torch.testing.assert_close(middle, (at_knots[1:] + at_knots[:-1]) / 2, rtol=1e-4, atol=1e-4)
    outside = torch.tensor([-30.0, 40.0], dtype=torch.float64)
    torch.testing.assert_close(
        values_of(new_module, new, outside), values_of(old_module, old, outside), rtol=1e-4, atol=1e-4
    )


def test_without_bins_the_line_goes_through_the_ends_of_the_old_curve() -> None:
    statistics = NumericStatistics(mean=1.0, std=2.0, knots=[0.0, 4.0, 6.0])
    old, new = curve(statistics), curve(statistics, bins=0)
    change = CurveChange(old, new)
    assert "as a line" in change.note()
    parameters = drawn(old, 2)
    ends = torch.tensor([0.0, 6.0], dtype=torch.float64)
    after = values_of(embeddings(new, change.apply(*parameters)), new, ends)
    torch.testing.assert_close(after, values_of(embeddings(old, parameters), old, ends), rtol=1e-5, atol=1e-5)


STILL = ("train.learning_rate=1e-12", "tables.optimizer.learning_rate=1e-12", "train.steps=1")


def rescale(statistics: dict[str, Any]) -> None:
    """Change mean and standard deviation of every numeric field; the raw values of the knots stay the same."""
    for field in statistics["numeric"].values():
        field["mean"], field["std"] = field["mean"] + 0.7 * field["std"], 1.9 * field["std"]


def test_a_run_from_another_one_scores_like_it(
    clicks: Path, tmp_path: Path, command: Callable[..., Any], small: list[str]
) -> None:
    """With learning rates near zero, the test AUC equals the AUC of the other run, also with other statistics."""

    def test_auc(run: Path, data: Path, *options: object) -> float:
        outcome = command("train", data / "job.yaml", "--run", run, *small, *options)
        assert outcome.status == 0, outcome.err
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        (auc,) = (record["test/auc"] for record in records if "test/auc" in record)
        return float(auc)

    fast = [part for setting in ("train.learning_rate=0.01", "train.epochs=6") for part in ("--set", setting)]
    first = test_auc(tmp_path / "first", clicks, *fast)
    other = shutil.copytree(clicks, tmp_path / "other")
    statistics = yaml.safe_load((other / "statistics.yaml").read_text())
    rescale(statistics)
    (other / "statistics.yaml").write_text(yaml.safe_dump(statistics, sort_keys=False))
    options = ["--init-from", tmp_path / "first", *(part for setting in STILL for part in ("--set", setting))]
    assert test_auc(tmp_path / "same", clicks, *options) == pytest.approx(first, abs=1e-6)
    assert test_auc(tmp_path / "rescaled", other, *options) == pytest.approx(first, abs=1e-4)
