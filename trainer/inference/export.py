"""Export a run: its best step with quantised tables, and a card with the metrics before and after quantisation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from asymdiffrec.datasets.files.locations import filesystem_of
from asymdiffrec.embeddings.serving_tables import Precision
from asymdiffrec.serving.export import ExportConfig, Manifest, write_export
from asymdiffrec.serving.scorer import Scorer
from asymdiffrec.trainer.evaluation import scenarios
from asymdiffrec.trainer.evaluation.evaluate import evaluate, evaluation_reader
from asymdiffrec.trainer.inference.quantised_scorer import model_weights
from asymdiffrec.trainer.inference.restore import RestoredRun, restore_run
from asymdiffrec.trainer.job import Job

CARD_MISSING_RATES = (0.0, 0.1, 0.3, 0.5)
"""Probabilities of a missing field; the card has metrics for each probability"""


def export_run(folder: Path, out: Path, precision: Precision, console: Console) -> tuple[Manifest, Mapping[str, Any]]:
    """Write the export `out` of a run's best step, with tables in `precision`; return its manifest and card.

    `metrics` in the card has the metrics on the test split: of the model as trained (`run`) and as exported (`export`).
    Both have metrics with fields missing at random (`random_missing`), and with one field or group missing for all
    samples (`outages`). Raises InputError if `out` exists.
    """
    with restore_run(folder) as run:
        statistics = run.schema.statistics
        assert statistics is not None
        package = version("asymdiffrec")

        def make_card(scorer: Scorer) -> dict[str, Any]:
            with console.status("evaluating the model as trained and as exported"):
                metrics = {
                    "run": _test_metrics(run, run.train_state.recommender),
                    "export": _test_metrics(run, scorer),
                }
            return {
                "name": run.job.name,
                "run": str(folder),
                "step": run.step,
                "package": package,
                "precision": precision,
                "rows": statistics.rows,
                "label_rate": statistics.label_rate,
                "metrics": metrics,
                "profile": _read_profile(run.job),
            }

        config = _export_config(run.job, precision)
        return write_export(out, config, statistics, *model_weights(run.train_state), make_card, package)


def _export_config(job: Job, precision: Precision) -> ExportConfig:
    return ExportConfig(
        name=job.name,
        data=job.data.model_copy(update={"path": "."}),
        fields=job.fields,
        tables=job.tables,
        model=job.model,
        diffusion=job.diffusion,
        precision=precision,
    )


def _test_metrics(run: RestoredRun, scorer: Any) -> dict[str, Any]:
    """Return the metrics of a model on the test split, with fields missing at random and with outages."""
    schema = run.schema
    random_missing = [scenarios.drop_at_random(rate, schema) for rate in CARD_MISSING_RATES]
    reader = evaluation_reader(run.job, schema, "test")
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as spill:
        results = evaluate(scorer, reader, [*random_missing, *scenarios.outage_drill(schema)], Path(spill))
    count = len(random_missing)
    return {"random_missing": results[:count], "outages": results[count:]}


def _read_profile(job: Job) -> dict[str, Any] | None:
    """Return the profile that `prepare` wrote next to the data, or None if it does not exist or cannot be read."""
    filesystem, path = filesystem_of(job.location("profile.json"))
    try:
        with filesystem.open_input_stream(path) as stream:
            profile: dict[str, Any] = json.loads(stream.read())
    except (OSError, ValueError):
        return None
    return profile
