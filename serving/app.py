"""The HTTP application: JSON or Arrow in, scores out; health, readiness, metrics and what it serves."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asymdiffrec.serving.engine import Answer, Engine
from asymdiffrec.serving.requests import BadRequestError, checked, table_of

ARROW = "application/vnd.apache.arrow.stream"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Limits:
    body: int = 16 << 20
    """Bytes of a request"""
    samples: int = 10_000
    """Of a request"""
    waiting: int = 64
    """Requests that are answered or wait for it; more are refused at once, for a queue only makes all of them late"""


class Service:
    """One engine behind an application."""

    def __init__(self, limits: Limits, token: str | None, threads: int) -> None:
        self.limits, self._token = limits, token
        self.engine: Engine | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="scoring")
        self._taken = 0
        self.registry = CollectorRegistry()
        self._requests = Counter("asymdiffrec_requests", "answered", ["status"], registry=self.registry)
        self._samples = Counter("asymdiffrec_samples", "scored", registry=self.registry)
        self._seconds = Histogram(
            "asymdiffrec_request_seconds", "of an answer", buckets=SECONDS, registry=self.registry
        )

    async def score(self, request: Request) -> Response:
        """POST /v1/score"""
        start, status = time.perf_counter(), 500
        try:
            self._require_token(request)
            if self._taken >= self.limits.waiting:
                raise HTTPException(503, "too many requests at once", {"Retry-After": "1"})
            self._taken += 1
            try:
                response = await self._scored(request)
            finally:
                self._taken -= 1
            status = 200
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            self._requests.labels(str(status)).inc()
            self._seconds.observe(time.perf_counter() - start)

    async def _scored(self, request: Request) -> Response:
        engine = self._ready()
        body = await self._body(request)
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind not in ("application/json", ARROW):
            raise HTTPException(415, f"content-type {kind}: application/json or {ARROW} is expected")
        work = self._by_arrow if kind == ARROW else self._by_json
        answer = await asyncio.get_running_loop().run_in_executor(self._pool, work, engine, body)
        return Response(answer, media_type=kind)

    def _by_json(self, engine: Engine, body: bytes) -> bytes:
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise HTTPException(400, f"not JSON: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("samples"), list):
            raise HTTPException(400, 'found no list of samples; {"samples": [{"COLUMN": VALUE}]} is expected')
        unknown = document.keys() - {"samples", "before", "missing"}
        if unknown:
            raise HTTPException(400, f"{min(unknown)}: no such key; there are samples, before and missing")
        samples = document["samples"]
        self._require_few(len(samples))
        schema = engine.bundle.schema
        if not samples:
            return orjson.dumps({"version": engine.version, "scores": []})
        answer = self._answered(engine, lambda: table_of(samples, schema), bool(document.get("before")))
        told: dict[str, Any] = {"version": engine.version, "scores": answer.scores.tolist()}
        if document.get("missing", True):
            told["missing"] = [
                [name for name, gone in zip(schema.names, row, strict=True) if gone] for row in answer.missing.tolist()
            ]
        if answer.before is not None:
            told["before"] = answer.before.tolist()
        return orjson.dumps(told)

    def _by_arrow(self, engine: Engine, body: bytes) -> bytes:
        try:
            table = pa.ipc.open_stream(body).read_all()
            table.validate(full=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise HTTPException(400, f"not an Arrow stream: {str(error).splitlines()[0]}") from error
        self._require_few(len(table))
        scores = pa.array([], pa.float32())
        if len(table):
            answer = self._answered(engine, lambda: checked(table, engine.bundle.schema), False)
            scores = pa.array(answer.scores, pa.float32())
        found = pa.table({"score": scores}).replace_schema_metadata({"version": engine.version})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, found.schema) as writer:
            writer.write_table(found)
        return bytes(sink.getvalue())

    def _answered(self, engine: Engine, table: Callable[[], pa.Table], before: bool) -> Answer:
        try:
            answer = engine.score(table(), before)
        except BadRequestError as error:
            raise HTTPException(422, str(error)) from error
        self._samples.inc(len(answer.scores))
        return answer

    def _require_few(self, samples: int) -> None:
        if samples > self.limits.samples:
            raise HTTPException(413, f"{samples:,} samples; {self.limits.samples:,} are allowed in a request")

    def _require_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise HTTPException(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: Request) -> bytes:
        """Read no more of it than is allowed."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.limits.body:
                raise HTTPException(413, f"a body of more than {self.limits.body:,} bytes")
            parts.append(part)
        return b"".join(parts)

    def _ready(self) -> Engine:
        if self.engine is None:
            raise HTTPException(503, "not ready yet", {"Retry-After": "1"})
        return self.engine

    async def health(self, request: Request) -> Response:
        """GET /health: the process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: the model is loaded, its pages are read, and it has scored a sample."""
        return _json({"status": "ready", "version": self._ready().version})

    async def model(self, request: Request) -> Response:
        """GET /v1/model: the card of what is served, and the columns of a sample."""
        self._require_token(request)
        engine = self._ready()
        columns = engine.bundle.schema.columns(labelled=False)
        return _json({"version": engine.version, "columns": columns, "card": engine.bundle.card})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def application(self) -> Starlette:
        routes = [
            Route("/v1/score", self.score, methods=["POST"]),
            Route("/v1/model", self.model),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refused})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"error": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")
