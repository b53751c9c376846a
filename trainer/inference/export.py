"""From a run to a folder that serves: its best step, with tables rounded, and a card that says what that costs."""

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
from asymdiffrec.serving.export import ExportConfig, Manifest, Scorer, write_export
from asymdiffrec.trainer.evaluation import scenarios
from asymdiffrec.trainer.evaluation.evaluate import evaluate, evaluation_reader
from asymdiffrec.trainer.inference.quantised import model_weights
from asymdiffrec.trainer.inference.restore import RestoredRun, restore_run
from asymdiffrec.trainer.job import Job

SHARES = (0.0, 0.1, 0.3, 0.5)
"""Of missing fields, that the card tells the metrics for"""


def export_run(folder: Path, out: Path, precision: Precision, console: Console) -> tuple[Manifest, Mapping[str, Any]]:
    """Write the export `out` of a run's best step; its manifest and card.

    Raises InputError where `out` exists.
    """
    with restore_run(folder) as model:
        statistics = model.schema.statistics
        assert statistics is not None
        package = version("asymdiffrec")

        def card_of(scorer: Scorer) -> dict[str, Any]:
            with console.status("judging the model as trained, and as exported"):
                trained, exported = (_judged(model, one) for one in (model.train_state.recommender, scorer))
            return {
                "name": model.job.name,
                "run": str(folder),
                "step": model.step,
                "package": package,
                "precision": precision,
                "rows": statistics.rows,
                "label_rate": statistics.label_rate,
                "trained": trained,
                "exported": exported,
                "profile": _profile(model.job),
            }

        config = _config(model.job, precision)
        return write_export(out, config, statistics, *model_weights(model.train_state), card_of, package)


def _config(job: Job, precision: Precision) -> ExportConfig:
    return ExportConfig(
        name=job.name,
        data=job.data.model_copy(update={"path": "."}),
        fields=job.fields,
        tables=job.tables,
        model=job.model,
        diffusion=job.diffusion,
        precision=precision,
    )


def _judged(model: RestoredRun, scorer: Any) -> dict[str, Any]:
    """Metrics of the test split, and the drill."""
    schema = model.schema
    asked = [*(scenarios.drop_at_random(share, schema) for share in SHARES), *scenarios.outage_drill(schema)]
    reader = evaluation_reader(model.job, schema, "test")
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as spill:
        found = evaluate(scorer, reader, asked, Path(spill), model.job.train.metric_rows)
    return {"test": found[: len(SHARES)], "drill": found[len(SHARES) :]}


def _profile(job: Job) -> dict[str, Any] | None:
    """What `prepare` found in the data, where it is beside them."""
    filesystem, inner = filesystem_of(job.location("profile.json"))
    try:
        with filesystem.open_input_stream(inner) as stream:
            found: dict[str, Any] = json.loads(stream.read())
    except (OSError, ValueError):
        return None
    return found
