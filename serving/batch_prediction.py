"""Batch prediction: write the rows of Parquet shards with an added column of scores, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch, split_into_batches
from asymdiffrec.datasets.decoding.column_check import check_columns
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.files.atomic import new_parquet_file
from asymdiffrec.datasets.prefetch import prefetch
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards

SCORE = "score"
"""Name of the new column"""


class BatchScorer(Protocol):
    """A model that returns the logits [B] of a batch."""

    def score(self, batch: Batch) -> torch.Tensor:
        """Return logits [B]."""
        ...

    def eval(self) -> object:
        """Switch to evaluation mode."""
        ...


def predict_shards(
    model: BatchScorer,
    schema: Schema,
    shards: Shards,
    out: Path,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda rows: None,
    threads: int = 1,
) -> int:
    """Write all rows and columns of `shards` to `out`, with a new column `score`: the probability of label 1.

    The rows keep their order. Missing fields are passed to the model as missing, as in training. `threads` threads read
    and score row groups in advance, while other row groups are written. `advance` is called with the number of rows of
    each written row group. `out` appears only when it is complete. Returns the number of rows.

    Raises InputError if a column is missing or has a wrong type, if a file already has a column `score`, if the files
    have different columns, or if `out` exists.
    """
    check_columns(schema, shards, labelled=False)
    for file, arrow in zip(shards.files, shards.schemas, strict=True):
        if SCORE in arrow.names:
            raise InputError(f"{file}: already has a column named {SCORE}; rename that column")
        if not arrow.equals(shards.schemas[0]):
            raise InputError(
                f"{file}: its columns differ from the columns of {shards.files[0]}; run predict on each file separately"
            )
    arrow = shards.schemas[0].append(pa.field(SCORE, pa.float32()))
    model.eval()

    @torch.no_grad()  # inside the function, because torch keeps the grad mode per thread
    def score_row_group(group: int) -> pa.Table:
        table = shards.read(group, shards.schemas[0].names)
        rows = decode(table.select(schema.columns(labelled=False)), schema, shards.location_of(group), labelled=False)
        scores = [
            model.score(batch.to(device)).sigmoid().cpu() for batch in split_into_batches(rows, schema, batch_size)
        ]
        return table.append_column(arrow.field(SCORE), pa.array(torch.cat(scores).numpy())).cast(arrow)

    jobs = (partial(score_row_group, group) for group in range(len(shards.row_groups)))
    with new_parquet_file(out, arrow) as writer:
        for table in prefetch(jobs, threads) if threads > 1 else (job() for job in jobs):
            writer.write_table(table)
            advance(len(table))
    return shards.rows
