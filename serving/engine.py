"""From a table of samples to scores: what every way of serving calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from asymdiffrec.datasets.batch import to_batch
from asymdiffrec.datasets.errors import InputError
from asymdiffrec.datasets.rows import decode
from asymdiffrec.serving.bundle import Bundle
from asymdiffrec.serving.requests import BadRequestError


@dataclass(frozen=True)
class Answer:
    """Of B samples."""

    scores: np.ndarray
    """[B] float32, the probability of a 1"""
    missing: np.ndarray
    """[B, N] bool, fields in the schema's order"""
    before: np.ndarray | None
    """[B], what the scores would be without the denoiser; where it was asked for and there is one"""


class Engine:
    """Scores with one export. It may be called by several threads at once."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.version = bundle.manifest.version

    def warm(self) -> None:
        """Read every page of the tables, and score a sample without any field: it has to be a probability.

        Raises InputError where it is not.
        """
        self.bundle.model.tables.touch()
        columns = {name: pa.nulls(1) for name in self.bundle.schema.columns(labelled=False)}
        score = self.score(pa.table(columns)).scores[0]
        if not 0 <= score <= 1:
            raise InputError(f"{self.bundle.folder}: scores a sample without fields with {score}")

    @torch.inference_mode()
    def score(self, table: pa.Table, before: bool = False) -> Answer:
        """The rows of a table with the columns of the schema; BadRequestError for a value that is not allowed."""
        schema, model = self.bundle.schema, self.bundle.model
        try:
            rows = decode(table.select(schema.columns(labelled=False)), schema, "samples", labelled=False)
        except InputError as error:
            raise BadRequestError(str(error)) from error
        batch = to_batch(rows, schema, 0)
        x, missing = model.tables(batch)
        scores = model.diffusion.score(x, missing).sigmoid().numpy()
        denoises = before and hasattr(model.diffusion, "denoiser")
        plain = model.diffusion.logit(model.diffusion.latent(x, missing)).sigmoid().numpy() if denoises else None
        return Answer(scores, missing.numpy(), plain)
