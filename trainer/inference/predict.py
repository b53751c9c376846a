"""Batch prediction with a run or an export: one file in this process, or many files on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from asymdiffrec.base import InputError
from asymdiffrec.cluster.parallel_tasks import run_in_parallel
from asymdiffrec.datasets.files.locations import join_location
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.diffusion.recommender import Recommender
from asymdiffrec.serving.batch_prediction import predict_shards
from asymdiffrec.serving.export import is_export, load_export
from asymdiffrec.serving.scorer import Scorer
from asymdiffrec.trainer.evaluation.evaluate import evaluation_batch_size
from asymdiffrec.trainer.inference.restore import restore_run

EXPORT_BATCH_SIZE = 4096
"""Rows per batch with an export. The activations of larger batches do not fit in the CPU caches; with smaller batches
the threads wait for each other more often."""


@dataclass(frozen=True)
class PredictTask:
    """A file to score. The task is sent to a Ray worker, so all paths are strings."""

    model: str
    """Run directory or export folder"""
    data: str
    """Parquet file or URI"""
    out: str
    """Parquet file to write"""
    allow_user_classes: bool


def predict_run(folder: Path, data: str, out: Path, console: Console, *, allow_user_classes: bool = False) -> int:
    """Score every row of `data`, write the rows with their scores to `out`, and return the number of rows.

    `folder` is an export or a run directory. An export scores on all cores. From a run directory the best step is
    restored. Raises the errors of `predict_shards`, `restore_run` and `load_export`.
    """
    with ExitStack() as stack:
        model: Recommender | Scorer
        if is_export(folder):
            export = load_export(folder, allow_user_classes=allow_user_classes)
            model, schema, device = export.model, export.schema, torch.device("cpu")
            batch_size, threads = EXPORT_BATCH_SIZE, torch.get_num_threads()
            # Each of the prediction threads runs its batch with one torch thread.
            torch.set_num_threads(1)
            stack.callback(torch.set_num_threads, threads)
        else:
            run = stack.enter_context(restore_run(folder))
            model, schema, device = run.train_state.recommender, run.schema, run.train_state.device
            batch_size, threads = evaluation_batch_size(run.job), 1
        shards = open_shards(data)
        progress = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        bar = progress.add_task("predicting", total=shards.rows)
        return predict_shards(
            model, schema, shards, out, batch_size, device, lambda rows: progress.advance(bar, rows), threads
        )


def unfinished_tasks(model: Path, data: str, out: Path, allow_user_classes: bool) -> list[PredictTask]:
    """Return a task for each file of `data` for which the folder `out` has no file yet.

    Raises InputError if `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(
            f"{out}: is a file; with --parallel, OUT must be a folder, which gets one file for each file of DATA"
        )
    names = [Path(path).name for path in open_shards(data).files]
    is_single_file = [Path(data).name] == names
    return [
        PredictTask(
            str(model), data if is_single_file else join_location(data, name), str(out / name), allow_user_classes
        )
        for name in names
        if not (out / name).exists()
    ]


def predict_files(tasks: list[PredictTask], parallel: int, address: str | None) -> Iterator[tuple[str, int]]:
    """Run `parallel` tasks at a time under Ray. When a task ends, yield the written file and its number of rows.

    `address` is the address of a Ray cluster; None: start a cluster on this host.
    """
    for task, rows in run_in_parallel(_predict, tasks, parallel, address):
        yield task.out, rows


def _predict(task: PredictTask) -> int:
    quiet = Console(quiet=True)
    return predict_run(Path(task.model), task.data, Path(task.out), quiet, allow_user_classes=task.allow_user_classes)
