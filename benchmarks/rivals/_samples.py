"""Read a split as numpy arrays, for rivals that are not networks."""

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
    """The ids of a sparse field, in the order of the rows."""

    values: np.ndarray
    """[number of ids]"""
    rows: np.ndarray
    """[number of ids]: the row of each id"""


@dataclass(frozen=True)
class Split:
    """A split with R rows and N fields."""

    bags: dict[str, Bags]
    numeric: np.ndarray
    """[R, number of numeric fields]"""
    missing: np.ndarray
    """[R, N] bool"""
    label: np.ndarray
    """[R]"""

    def __len__(self) -> int:
        return len(self.label)


def read(job: Job, schema: Schema, split: str) -> Split:
    """Return a complete split, with the rows in their order."""
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
    """Return the mask of a scenario, [R, N] bool: fields that are missing in the data or dropped by the scenario.

    `evaluate` uses the same mask for networks.
    """
    process = scenario.process(FieldLayout.from_widths([1] * missing.shape[1]), schema)
    if process is None:
        return missing
    clean = torch.zeros(missing.shape)
    return process(clean, torch.from_numpy(missing), torch.arange(len(missing)))[1].numpy()
