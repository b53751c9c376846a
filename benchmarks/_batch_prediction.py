"""Compare batch prediction from an export with the model's bare forward pass, in rows per second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from asymdiffrec.datasets.batching.batch import Batch, split_into_batches
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.serving.export import load_export
from asymdiffrec.trainer.inference.predict import EXPORT_BATCH_SIZE, predict_run
from benchmarks._report import alternate
from benchmarks._result import Result

ROWS_PER_CORE = 500_000
GOAL = 0.8
"""Goal: smallest ratio of the speed of `predict` to the speed of the forward pass"""


def prediction_results(folder: Path, data: Path, rounds: int) -> Iterator[Result]:
    """Compare the speed of `predict` on a Parquet file with the speed of the forward pass on decoded batches.

    The file is so large that `predict` runs for some seconds.
    """
    export = load_export(folder / "export")
    schema, cores = export.schema, len(os.sched_getaffinity(0))
    part = pq.read_table(data / "train").select(schema.columns(labelled=False)).combine_chunks()
    copies = max(1, cores * (ROWS_PER_CORE if rounds > 1 else 1) // len(part))
    table = pa.concat_tables([part] * copies)
    pq.write_table(table, folder / "many.parquet", row_group_size=16 * EXPORT_BATCH_SIZE)
    rows = decode(part, schema, "", labelled=False)
    batches = list(split_into_batches(rows, schema, EXPORT_BATCH_SIZE)) * copies

    @torch.inference_mode()
    def forward(batch: Batch) -> None:
        export.model.score(batch).sigmoid()

    def predict() -> None:
        out = folder / "scores.parquet"
        out.unlink(missing_ok=True)
        predict_run(folder / "export", str(folder / "many.parquet"), out, Console(quiet=True))

    def forward_all() -> None:
        """Run the forward pass in a thread per core, as `predict_run` does."""
        torch.set_num_threads(1)
        list(pool.map(forward, batches))
        torch.set_num_threads(cores)

    torch.set_num_threads(cores)
    with ThreadPoolExecutor(cores) as pool:
        seconds = alternate(predict, forward_all, rounds)
    ours, theirs = (len(table) / duration for duration in seconds)
    goal = f">= {GOAL}"
    yield Result("rows of predict", ours, "rows/s", "bare forward pass", theirs, goal, ours >= GOAL * theirs)
