"""From a table of samples to scores: what every way of serving calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import Batch, to_batch
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import Schema
from asymdiffrec.diffusion.layers import Candidates
from asymdiffrec.serving.export import Export
from asymdiffrec.serving.request_schema import Query, RequestSchema, SampleError
from asymdiffrec.serving.self_test import TOLERANCE, difference


@dataclass(frozen=True)
class Answer:
    """Of B samples."""

    scores: np.ndarray
    """[B] float32, the probability of a 1"""
    missing: np.ndarray
    """[B, N] bool, fields in the schema's order"""
    before: np.ndarray | None = None
    """[B], what the scores would be without the denoiser; where it was asked for and there is one"""

    def part(self, start: int, stop: int) -> Answer:
        """Of samples [start, stop)."""
        before = None if self.before is None else self.before[start:stop]
        return Answer(self.scores[start:stop], self.missing[start:stop], before)


class Engine:
    """Scores with one export. It may be called by several threads at once."""

    def __init__(self, export: Export) -> None:
        self.export = export
        self.version = export.manifest.version
        self.request_schema = RequestSchema(export.schema)
        self._layout = export.model.tables.layout

    @property
    def schema(self) -> Schema:
        return self.export.schema

    def warm(self) -> None:
        """Read every page of the tables, and score the samples of the export's check.

        Raises InputError where the scores are not those that it scored them with when it was exported.
        """
        self.export.model.tables.touch()
        try:
            off = difference(self.export.model, self.schema, self.export.card["check"])
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.export.folder}: its card has no check that can be made") from error
        if not off <= TOLERANCE:
            raise InputError(f"{self.export.folder}: scores differ by {off:.2g} from those when it was exported")

    @torch.inference_mode()
    def score(self, table: pa.Table, before: bool = False) -> Answer:
        """The rows of a table with the columns of the schema; BadRequestError for a value that is not allowed."""
        if not len(table):
            return self._nothing()
        x, missing = self._looked_up(table, "samples")
        scores = self.export.model.logits(x, missing).sigmoid().numpy()
        diffusion = self.export.model.diffusion
        denoises = before and hasattr(diffusion, "denoiser")
        plain = diffusion.logit(diffusion.latent(x, missing)).sigmoid().numpy() if denoises else None
        return Answer(scores, missing.numpy(), plain)

    @torch.inference_mode()
    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Of each query its candidates, with what they share.

        That is looked up once, and goes once through what the model does with it first. Queries whose candidates have
        the same columns are answered together. Raises as `score` does.
        """
        alike: dict[frozenset[str], list[int]] = {}
        for place, query in enumerate(queries):
            alike.setdefault(frozenset(query.own), []).append(place)
        found: dict[int, Answer] = {}
        for own, places in alike.items():
            together = [queries[place] for place in places]
            answer, stop = self._rank(own, together), 0
            for place, query in zip(places, together, strict=True):
                start, stop = stop, stop + query.candidates
                found[place] = answer.part(start, stop)
        return [found[place] for place in range(len(queries))]

    def _rank(self, own: frozenset[str], queries: Sequence[Query]) -> Answer:
        """The candidates of all queries, whose own columns are these."""
        lengths = torch.tensor([query.candidates for query in queries])
        if not lengths.sum():
            return self._nothing()
        mine = torch.tensor([self.schema.column(name) in own for name in self.schema.names])
        columns = mine[self._layout.field_of_column].nonzero()[:, 0]
        x, missing = self._looked_up(self.request_schema.table_of(queries), "candidates")
        count, query = len(queries), torch.arange(len(queries)).repeat_interleave(lengths)
        together = torch.where(mine, missing[count:], missing[:count].index_select(0, query))
        parts = Candidates(x[:count], query, x[count:].index_select(1, columns), columns)
        logits = self.export.model.diffusion.score_candidates(parts, together)
        return Answer(logits.sigmoid().numpy(), together.numpy())

    def _nothing(self) -> Answer:
        return Answer(np.empty(0, np.float32), np.empty((0, len(self.schema.names)), bool))

    def _looked_up(self, table: pa.Table, place: str) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, sum D_n] and missing [B, N]"""
        batch = self.batch(table, place)
        return self.export.model.vectors(batch), batch.missing

    def batch(self, table: pa.Table, place: str) -> Batch:
        """The rows of a table with the columns of the schema; BadRequestError for a value that is not allowed."""
        try:
            rows = decode(table.select(self.schema.columns(labelled=False)), self.schema, place, labelled=False)
        except InputError as error:
            raise SampleError(str(error)) from error
        return to_batch(rows, self.schema, 0)
