"""Evaluate the best step of a run on one split: metrics under each scenario, or the score of every row."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from asymdiffrec.base import InputError
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.diffusion.recommender import Recommender
from asymdiffrec.embeddings.serving_tables import Precision
from asymdiffrec.serving.scorer import Scorer
from asymdiffrec.trainer.evaluation.evaluate import (
    Scores,
    concatenate_scores,
    evaluate,
    evaluation_reader,
    score_batches,
)
from asymdiffrec.trainer.evaluation.scenarios import Scenario, ScenarioOptions, training_ids
from asymdiffrec.trainer.inference.quantised_scorer import model_weights, quantised_scorer
from asymdiffrec.trainer.inference.restore import restore_run


@dataclass(frozen=True)
class RunEvaluation:
    """The metrics of a run's best step on one split."""

    step: int
    """The best step, whose weights were evaluated"""
    results: list[dict[str, Any]]
    """The metrics under each scenario"""
    table_bytes: tuple[int, int] | None
    """Bytes of all tables (as trained, as quantised); None if the tables were not quantised"""


def evaluate_run(
    folder: Path,
    split: str,
    scenarios: Callable[[Schema], Sequence[Scenario]],
    console: Console,
    tables: Precision | None = None,
) -> RunEvaluation:
    """Evaluate a run's best step on a split, under the scenarios that `scenarios` returns for the run's schema.

    If `tables` is a precision, the embedding tables are quantised to it and looked up as in serving. Raises InputError
    if the split or a scenario does not exist.
    """
    if split not in ("train", "valid", "test"):
        raise InputError(f"--split {split}: expected train, valid or test")
    with restore_run(folder) as run, tempfile.TemporaryDirectory(prefix="asymdiffrec-") as spill:
        selected = scenarios(run.schema)
        scorer: Recommender | Scorer = run.train_state.recommender
        table_bytes = None
        if tables:
            file = Path(spill) / "tables.bin"
            weights = model_weights(run.train_state)
            scorer = quantised_scorer(run.train_state, weights, run.schema, run.job.tables, tables, file)
            table_bytes = sum(weight.nbytes for weight in weights.tables.values()), file.stat().st_size
        reader = evaluation_reader(run.job, run.schema, split)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(f"evaluating the {split} split", total=len(reader))
            results = evaluate(
                scorer,
                reader,
                selected,
                Path(spill),
                advance=lambda: progress.advance(bar),
                training_ids=training_ids(selected, run.job, run.schema),
            )
        return RunEvaluation(run.step, results, table_bytes)


def score_run(folder: Path, split: str, options: ScenarioOptions) -> Scores:
    """Return the scores of a run's best step for each row of a split, in file order, under each scenario."""
    with restore_run(folder) as run:
        scenarios = options.scenarios(run.schema)
        reader = evaluation_reader(run.job, run.schema, split)
        ids = training_ids(scenarios, run.job, run.schema)
        parts = list(score_batches(run.train_state.recommender, reader, scenarios, ids))
    return concatenate_scores([part for part in parts if part is not None])
