"""Compute scores with a loaded export. All kinds of HTTP requests use this module."""

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
from asymdiffrec.serving.errors import SampleError
from asymdiffrec.serving.export import SELF_TEST, Export
from asymdiffrec.serving.request_schema import Query, RequestSchema
from asymdiffrec.serving.self_test import MAX_SCORE_DIFFERENCE, score_difference


@dataclass(frozen=True)
class ScoredSamples:
    """The scores of B samples or candidates."""

    scores: np.ndarray
    """[B] float32, the probability of label 1"""
    missing: np.ndarray
    """[B, N] bool, true where a field is missing; the fields are in the order of the schema"""
    without_denoiser: np.ndarray | None = None
    """[B] float32, the scores without the denoiser; None if they were not requested or the model has no denoiser"""

    def slice(self, start: int, stop: int) -> ScoredSamples:
        """Return the scores of the samples from index `start` up to, but not including, index `stop`."""
        without_denoiser = None if self.without_denoiser is None else self.without_denoiser[start:stop]
        return ScoredSamples(self.scores[start:stop], self.missing[start:stop], without_denoiser)


class Engine:
    """A loaded export that scores samples and candidates. Several threads may call it at the same time.

    engine = Engine(load_export(Path("model")))
    engine.score(engine.request_schema.table([{"user_id": 5, "item_id": 7}])).scores
    """

    def __init__(self, export: Export) -> None:
        self.export = export
        self.version = export.manifest.version
        self.request_schema = RequestSchema(export.schema)
        self._layout = export.model.tables.layout

    @property
    def schema(self) -> Schema:
        """The schema of the export."""
        return self.export.schema

    def warm_up(self) -> None:
        """Read every page of the tables into memory and run the self-test of the export.

        Raises InputError if the scores differ from the scores in the self-test.
        """
        self.export.model.tables.touch()
        try:
            difference = score_difference(self.export.model, self.schema, self.export.card[SELF_TEST])
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.export.folder}: card.json has no valid self-test; export the run again") from error
        if not difference <= MAX_SCORE_DIFFERENCE:
            raise InputError(
                f"{self.export.folder}: self-test failed: the scores differ by {difference:.2g} from the scores at "
                f"export; at most {MAX_SCORE_DIFFERENCE:g} is allowed"
            )

    @torch.inference_mode()
    def score(self, table: pa.Table, without_denoiser: bool = False) -> ScoredSamples:
        """Score the rows of a table that has the columns of the schema.

        If `without_denoiser` is true, also return the scores without the denoiser. Raises SampleError if a value is not
        allowed.
        """
        if not len(table):
            return self._no_samples()
        x, missing = self._look_up(table, "samples")
        scores = self.export.model.logits(x, missing).sigmoid().numpy()
        diffusion = self.export.model.diffusion
        if not without_denoiser or not hasattr(diffusion, "denoiser"):
            return ScoredSamples(scores, missing.numpy())
        plain_scores = diffusion.logit(diffusion.latent(x, missing)).sigmoid().numpy()
        return ScoredSamples(scores, missing.numpy(), plain_scores)

    @torch.inference_mode()
    def rank(self, queries: Sequence[Query]) -> list[ScoredSamples]:
        """Score the candidates of each query, in the order of the queries.

        The shared columns of a query are looked up once and multiplied by the first linear layer once. Queries whose
        candidates have the same columns are computed together. Raises SampleError if a value is not allowed.
        """
        groups: dict[frozenset[str], list[int]] = {}
        for index, query in enumerate(queries):
            groups.setdefault(frozenset(query.candidates), []).append(index)
        results: dict[int, ScoredSamples] = {}
        for columns, indices in groups.items():
            group = [queries[index] for index in indices]
            scored, stop = self._rank_group(columns, group), 0
            for index, query in zip(indices, group, strict=True):
                start, stop = stop, stop + query.num_candidates
                results[index] = scored.slice(start, stop)
        return [results[index] for index in range(len(queries))]

    def _rank_group(self, candidate_columns: frozenset[str], queries: Sequence[Query]) -> ScoredSamples:
        """Score the candidates of queries; in every query, `Query.candidates` has exactly `candidate_columns`."""
        lengths = torch.tensor([query.num_candidates for query in queries])
        if not lengths.sum():
            return self._no_samples()
        per_candidate = torch.tensor([self.schema.column(name) in candidate_columns for name in self.schema.names])
        columns = per_candidate[self._layout.field_of_column].nonzero()[:, 0]
        x, missing = self._look_up(self.request_schema.query_table(queries), "candidates")
        count, query = len(queries), torch.arange(len(queries)).repeat_interleave(lengths)
        missing = torch.where(per_candidate, missing[count:], missing[:count].index_select(0, query))
        candidates = Candidates(x[:count], query, x[count:].index_select(1, columns), columns)
        logits = self.export.model.diffusion.score_candidates(candidates, missing)
        return ScoredSamples(logits.sigmoid().numpy(), missing.numpy())

    def _no_samples(self) -> ScoredSamples:
        return ScoredSamples(np.empty(0, np.float32), np.empty((0, len(self.schema.names)), bool))

    def _look_up(self, table: pa.Table, location: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the field vectors x [B, sum D_n] and missing [B, N] of the rows of a table."""
        batch = self.batch(table, location)
        return self.export.model.vectors(batch), batch.missing

    def batch(self, table: pa.Table, location: str) -> Batch:
        """Convert a table that has the columns of the schema to a batch.

        Raises SampleError if a value is not allowed; the message starts with `location`.
        """
        try:
            rows = decode(table.select(self.schema.columns(labelled=False)), self.schema, location, labelled=False)
        except InputError as error:
            raise SampleError(str(error)) from error
        return to_batch(rows, self.schema, 0)
