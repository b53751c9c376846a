"""Batch prediction: Parquet in, the same Parquet with a column of scores out, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch, cut
from asymdiffrec.datasets.decoding.column_check import check_columns
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.files.new_file import new_parquet
from asymdiffrec.datasets.prefetch import ahead
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import Shards

SCORE = "score"


class Scores(Protocol):
    """A model that gives logits [B] of a batch."""

    def score(self, batch: Batch) -> torch.Tensor: ...

    def eval(self) -> object: ...


def predict(
    model: Scores,
    schema: Schema,
    shards: Shards,
    out: Path,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None] = lambda rows: None,
    threads: int = 1,
) -> int:
    """Write all columns of the rows of `shards`, in order, and the probability of a 1 as `score`; returns their number.

    A field that a row lacks is the noise that the model was trained to see through. `out` appears when it is complete.
    Row groups are read and scored by `threads` threads, ahead of the one that is written. Raises InputError where a
    column is lacking or wrong, or where `out` exists or the data have a column `score`.
    """
    check_columns(schema, shards, labelled=False)
    for file, arrow in zip(shards.files, shards.schemas, strict=True):
        if SCORE in arrow.names:
            raise InputError(f"{file}: has a column {SCORE} already; rename it")
        if not arrow.equals(shards.schemas[0]):
            raise InputError(f"{file}: its columns differ from those of {shards.files[0]}; predict them one at a time")
    arrow = shards.schemas[0].append(pa.field(SCORE, pa.float32()))
    model.eval()

    @torch.no_grad()  # which is the thread's own
    def scored(group: int) -> pa.Table:
        table = shards.read(group, shards.schemas[0].names)
        rows = decode(table.select(schema.columns(labelled=False)), schema, shards.place(group), labelled=False)
        scores = [model.score(batch.to(device)).sigmoid().cpu() for batch in cut(rows, schema, batch_size)]
        return table.append_column(arrow.field(SCORE), pa.array(torch.cat(scores).numpy())).cast(arrow)

    jobs = (partial(scored, group) for group in range(len(shards.row_groups)))
    with new_parquet(out, arrow) as writer:
        for table in ahead(jobs, threads) if threads > 1 else (job() for job in jobs):
            writer.write_table(table)
            advance(len(table))
    return shards.rows
