"""A split as arrays, for rivals that are not networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import EvaluationReader
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.field_layout import FieldLayout
from asymdiffrec.trainer.evaluation.scenarios import Scenario
from asymdiffrec.trainer.job import Job


@dataclass(frozen=True)
class Bags:
    """The ids of a sparse field, row by row."""

    values: np.ndarray
    """[ids]"""
    rows: np.ndarray
    """[ids]: the row of each id"""


@dataclass(frozen=True)
class Split:
    """R rows with N fields."""

    bags: dict[str, Bags]
    numeric: np.ndarray
    """[R, numeric fields]"""
    missing: np.ndarray
    """[R, N] bool"""
    label: np.ndarray
    """[R]"""

    def __len__(self) -> int:
        return len(self.label)


def read(job: Job, schema: Schema, split: str) -> Split:
    """Return a whole split, rows in order."""
    shards = open_shards(job.location(split))
    (batch,) = EvaluationReader(schema, shards, shards.rows).batches()
    return Split(
        {name: _bags(batch, name) for name in schema.sparse},
        batch.numeric.numpy(),
        batch.missing.numpy(),
        batch.label.numpy(),
    )


def _bags(batch: Batch, name: str) -> Bags:
    ids = batch.ids[name]
    return Bags(ids.values().numpy(), np.repeat(np.arange(len(batch)), ids.lengths().numpy()))


def missing_under(scenario: Scenario, schema: Schema, missing: np.ndarray) -> np.ndarray:
    """Return which fields are missing under a scenario, [R, N]: those that were missing, and those that it drops.

    The networks get the same mask for the same rows.
    """
    process = scenario.process(FieldLayout.from_widths([1] * missing.shape[1]), schema)
    if process is None:
        return missing
    clean = torch.zeros(missing.shape)
    return process(clean, torch.from_numpy(missing), torch.arange(len(missing)))[1].numpy()
