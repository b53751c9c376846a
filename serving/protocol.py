"""The HTTP protocol: convert request bodies to samples or queries, and scores to response bodies, in JSON or Arrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from asymdiffrec.serving.arrow_stream import read_stream, write_stream
from asymdiffrec.serving.engine import Engine, ScoredSamples
from asymdiffrec.serving.errors import RequestError, SampleError
from asymdiffrec.serving.request_schema import Query, RequestSchema

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
"""Content types of requests and responses"""


class ScoreRequest(ABC):
    """A request for the scores of samples."""

    samples: Sequence[Any] | Mapping[str, Any] | pa.Table
    without_denoiser = False
    """Whether the request also asks for the scores without the denoiser"""

    @abstractmethod
    def response(self, engine: Engine, scored: ScoredSamples) -> bytes:
        """Return the response body for the scored samples of this request."""

    def __len__(self) -> int:
        return count_samples(self.samples)

    def table(self, request_schema: RequestSchema) -> pa.Table:
        """Return the samples as a table; raise SampleError if a sample is wrong."""
        if isinstance(self.samples, pa.Table):
            return request_schema.table_from_arrow(self.samples)
        return request_schema.table(self.samples)


class JsonScoreRequest(ScoreRequest):
    """A JSON request {"samples": ..., "without_denoiser": false, "missing": true}; the last two keys are optional."""

    EXPECTED = '{"samples": [{"COLUMN": VALUE}]}'

    def __init__(self, body: bytes) -> None:
        document = _require_object(_load_json(body, "body"), {"samples", "without_denoiser", "missing"}, self.EXPECTED)
        self.samples = _samples(document, "samples", self.EXPECTED)
        self.without_denoiser = _flag(document, "without_denoiser", False)
        self.missing = _flag(document, "missing", True)

    def response(self, engine: Engine, scored: ScoredSamples) -> bytes:
        """Return {"version": ..., "scores": [...], "missing": [[field, ...], ...], "without_denoiser": [...]}."""
        document: dict[str, Any] = {"version": engine.version, "scores": scored.scores}
        if self.missing:
            names = np.array(engine.schema.names, dtype=object)
            document["missing"] = [names[row].tolist() for row in scored.missing]
        if scored.without_denoiser is not None and self.without_denoiser:
            document["without_denoiser"] = scored.without_denoiser
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


class ArrowScoreRequest(ScoreRequest):
    """An Arrow request: a table whose rows are samples."""

    def __init__(self, body: bytes) -> None:
        self.samples = read_stream(body)

    def response(self, engine: Engine, scored: ScoredSamples) -> bytes:
        """Return a table with the column `score`, and the version in the metadata of its schema."""
        return _write_columns({"score": scored.scores}, engine)


class RankRequest(ABC):
    """A request for a ranking of candidates."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of candidates of all queries; a query without candidates counts as one candidate."""

    @abstractmethod
    def queries(self, request_schema: RequestSchema) -> list[Query]:
        """Return the queries of this request; raise SampleError if a sample is wrong."""

    @abstractmethod
    def response(self, engine: Engine, scored: Sequence[ScoredSamples]) -> bytes:
        """Return the response body for the scored candidates of each query."""


class JsonRankRequest(RankRequest):
    """A JSON request: a query {"shared": {...}, "candidates": ..., "top": 10}, or a list of such queries.

    The response to a list is a list of rankings.
    """

    EXPECTED = '{"shared": {"COLUMN": VALUE}, "candidates": [{"COLUMN": VALUE}], "top": 10}'

    def __init__(self, body: bytes) -> None:
        document = _load_json(body, "body")
        self.is_list = isinstance(document, list)
        documents = document if isinstance(document, list) else [document]
        self.documents = [_require_object(query, {"shared", "candidates", "top"}, self.EXPECTED) for query in documents]
        self.candidates = [_samples(query, "candidates", self.EXPECTED) for query in self.documents]
        self.tops = [_top(query.get("top")) for query in self.documents]

    def __len__(self) -> int:
        return sum(max(1, count_samples(candidates)) for candidates in self.candidates)

    def queries(self, request_schema: RequestSchema) -> list[Query]:
        """Return the queries. In a list of queries, the message of a SampleError starts with the index of the query."""
        queries = []
        for index, (document, candidates) in enumerate(zip(self.documents, self.candidates, strict=True)):
            try:
                queries.append(request_schema.query(document.get("shared", {}), candidates))
            except SampleError as error:
                raise SampleError(f"[{index}].{error}" if self.is_list else str(error)) from error
        return queries

    def response(self, engine: Engine, scored: Sequence[ScoredSamples]) -> bytes:
        """Return {"version": ..., "candidates": [index, ...], "scores": [...]} for each query, best candidate first."""
        rankings = []
        for top, candidates in zip(self.tops, scored, strict=True):
            best = rank_scores(candidates.scores, top)
            rankings.append({"version": engine.version, "candidates": best, "scores": candidates.scores[best]})
        return orjson.dumps(rankings if self.is_list else rankings[0], option=orjson.OPT_SERIALIZE_NUMPY)


class ArrowRankRequest(RankRequest):
    """An Arrow request: a table of candidates. The schema metadata has `shared` and `top` as JSON, both optional."""

    def __init__(self, body: bytes) -> None:
        self.table = read_stream(body)
        metadata = self.table.schema.metadata or {}
        self.shared = _load_json(metadata.get(b"shared", b"{}"), "metadata shared")
        self.top = _top(_load_json(metadata.get(b"top", b"null"), "metadata top"))

    def __len__(self) -> int:
        return len(self.table)

    def queries(self, request_schema: RequestSchema) -> list[Query]:
        """Return the single query of the request, in a list."""
        return [request_schema.query_from_arrow(self.shared, self.table)]

    def response(self, engine: Engine, scored: Sequence[ScoredSamples]) -> bytes:
        """Return a table with the columns `candidate` and `score`, best candidate first."""
        (candidates,) = scored
        best = rank_scores(candidates.scores, self.top)
        return _write_columns({"candidate": best, "score": candidates.scores[best]}, engine)


def rank_scores(scores: np.ndarray, top: int | None) -> np.ndarray:
    """Return the indices of the `top` highest scores (None: all), highest first; equal scores keep their order."""
    return np.argsort(-scores, kind="stable")[:top]


def count_samples(samples: Sequence[Any] | Mapping[str, Any] | pa.Table) -> int:
    """Return the number of samples in a request, before the samples are checked."""
    if not isinstance(samples, Mapping):
        return len(samples)
    first: Any = next(iter(samples.values()), [])
    return len(first) if isinstance(first, list) else 0


def _top(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise RequestError(400, f"top: found {value!r}; a number of candidates, at least 1, is expected")
    return value


def _flag(document: Mapping[str, Any], key: str, default: bool) -> bool:
    value = document.get(key, default)
    if type(value) is not bool:
        raise RequestError(400, f"{key}: found {value!r}; true or false is expected")
    return value


def _load_json(document: bytes, location: str) -> Any:
    try:
        return orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"{location}: not JSON: {error}") from error


def _require_object(document: Any, keys: set[str], expected: str) -> dict[str, Any]:
    if type(document) is not dict:
        raise RequestError(400, f"found no JSON object; {expected} is expected")
    if unknown := document.keys() - keys:
        raise RequestError(400, f"{min(unknown)}: no such key; the keys are {', '.join(sorted(keys))}")
    return document


def _samples(document: Mapping[str, Any], key: str, expected: str) -> list[Any] | dict[str, Any]:
    """Return the samples under a key of a request: a list of objects, or an object of lists."""
    samples = document.get(key)
    if not isinstance(samples, list | dict):
        raise RequestError(400, f"{key}: found no list or object of samples; {expected} is expected")
    return samples


def _write_columns(columns: Mapping[str, np.ndarray], engine: Engine) -> bytes:
    return write_stream(pa.table(dict(columns)).replace_schema_metadata({"version": engine.version}))
