"""The table of metrics: formulas, and every consumer reads its metrics from the table."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from asymdiffrec.base import InputError
from asymdiffrec.trainer.commands import evaluate, top
from asymdiffrec.trainer.evaluation.accumulator import MetricAccumulator
from asymdiffrec.trainer.evaluation.bootstrap import ModelScores, Samples, compare
from asymdiffrec.trainer.experiments.page import draw_figure, write_page
from asymdiffrec.trainer.experiments.text import metric_table
from asymdiffrec.trainer.fit.report import describe_record
from asymdiffrec.trainer.job import read_job
from asymdiffrec.trainer.metrics import METRICS, Metric, Sums, compute_metrics, ratio

SUMS = Sums(
    positive=np.array([2.0, 0.0]),
    negative=np.array([6.0, 0.0]),
    log_loss=np.array([4.0, 0.0]),
    probability=np.array([3.0, 0.0]),
    auc_area=np.array([9.0, 0.0]),
    auc_weight=np.array([12.0, 0.0]),
    user_auc=np.array([5.0, 0.0]),
    user_weight=np.array([8.0, 0.0]),
)


def test_formulas_on_sums_and_nan_without_samples() -> None:
    values = {name: value.tolist() for name, value in compute_metrics(SUMS).items()}
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    expected = {"auc": 0.75, "gauc": 0.625, "log_loss": 0.5, "normalized_entropy": 0.5 / entropy, "calibration": 1.5}
    assert {name: defined for name, (defined, _) in values.items()} == pytest.approx(expected)
    assert all(np.isnan(undefined) for _, undefined in values.values())


@pytest.fixture
def share_of_positives(monkeypatch: pytest.MonkeyPatch) -> str:
    """A new metric: one more entry in the table is all it needs."""
    metric = Metric(
        "positives", "POSITIVES", "lower", "share of positives", lambda sums: ratio(sums.positive, sums.weight)
    )
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric.name


def test_evaluation_and_bootstrap_compute_a_new_metric(share_of_positives: str, tmp_path: Path) -> None:
    logit, label = np.array([0.5, -1, 2, 0], np.float32), np.array([1, 0, 0, 0], np.float32)
    accumulator = MetricAccumulator(tmp_path, 10)
    accumulator.update(logit, label)
    assert accumulator.compute()[share_of_positives] == 0.25
    judged = ModelScores(logit[None], np.ones((1, 4), bool))
    values = compare({"base": [judged]}, Samples(label, np.ones(4, np.float32), None), draws=2).values["base"]
    assert values[0, 0, list(METRICS).index(share_of_positives)] == 0.25


def test_progress_line_and_top_show_a_new_metric(share_of_positives: str) -> None:
    record = {"step": 18, "epoch": 0, "missing": 0.0, **{f"valid/{name}": 0.5 for name in METRICS}}
    assert f"{share_of_positives} 0.5000" in describe_record(record, 36)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(top._validation_table([record]))
    shown = console.export_text()
    assert all(metric.heading in shown for metric in METRICS.values())


def test_tables_and_page_show_a_new_metric(share_of_positives: str, tmp_path: Path) -> None:
    values = dict.fromkeys(METRICS, 0.5)
    result = {"scenario": "0%", "missing": 0.0, "rows": 4, "gauc_users": 2, "gauc_users_left_out": 0, **values}
    columns = [column.header for column in evaluate._table(Path("run"), 1, "test", [result]).columns]
    assert columns == ["missing", *(metric.heading for metric in METRICS.values())]
    (outage,) = evaluate.outage_losses([result, {**result, "scenario": "item outage"}])
    assert outage[share_of_positives] == 0.5

    document = {
        "name": "clicks",
        "split": "test",
        "rows": 4,
        "seeds": 1,
        "reference": "base",
        "variants": ["base"],
        "failed": {},
        "diverged": {},
        "scenarios": [{"scenario": "0%", "missing": 0.0}],
        "results": [{"variant": "base", **result}],
        "differences": [],
    }
    assert METRICS[share_of_positives].heading in str(metric_table(document, share_of_positives).title)
    titles = [axes.get_title() for axes in draw_figure(document).axes]
    assert METRICS[share_of_positives].heading in titles
    write_page(document, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(f"<h2>{metric.heading}</h2>" in page for metric in METRICS.values())


def test_every_metric_with_a_direction_can_choose_the_best_step(share_of_positives: str, clicks: Path) -> None:
    job = read_job(clicks / "job.yaml", [f"train.validation.metric={share_of_positives}"])
    assert job.train.validation.metric == share_of_positives
    message = "train.validation.metric: found 'calibration'; expected one of auc, gauc, log_loss, normalized_entropy"
    with pytest.raises(InputError, match=message):
        read_job(clicks / "job.yaml", ["train.validation.metric=calibration"])


def test_a_trained_run_records_every_metric(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for split in ("valid", "test"):
        evaluations = [record for record in records if f"{split}/auc" in record]
        assert evaluations
        assert all(f"{split}/{name}" in record for record in evaluations for name in METRICS)
