"""A split as arrays, for models that are no networks."""

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
    """The ids of a field, row by row."""

    values: np.ndarray
    """[ids]"""
    rows: np.ndarray
    """[ids] the row that each is of"""


@dataclass(frozen=True)
class Split:
    """R rows of N fields."""

    bags: dict[str, Bags]
    numbers: np.ndarray
    """[R, number fields]"""
    missing: np.ndarray
    """[R, N] bool"""
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def read(job: Job, schema: Schema, split: str) -> Split:
    """A whole split, in order."""
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
    """Which fields [R, N] are missing under a scenario: those that were, and those that it drops, as the networks see
    it of the same rows."""
    process = scenario.process(FieldLayout.from_widths([1] * missing.shape[1]), schema)
    if process is None:
        return missing
    there = torch.zeros(missing.shape)
    return process(there, torch.from_numpy(missing), torch.arange(len(missing)))[1].numpy()
