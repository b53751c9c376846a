"""The HTTP application: JSON or Arrow in, scores or rankings out; health, readiness, metrics and what it serves."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from asymdiffrec.serving.batcher import Batcher, Read
from asymdiffrec.serving.openapi import description, page
from asymdiffrec.serving.protocol import (
    ARROW,
    JSON,
    ArrowRankRequest,
    ArrowScoreRequest,
    JsonRankRequest,
    JsonScoreRequest,
    RequestError,
)
from asymdiffrec.serving.reloader import Reloader

GONE = 499
"""Status of a request whose client did not wait, as nginx counts it"""
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SCORES: Mapping[str, Read] = {JSON: JsonScoreRequest, ARROW: ArrowScoreRequest}
RANKINGS: Mapping[str, Read] = {JSON: JsonRankRequest, ARROW: ArrowRankRequest}


@dataclass(frozen=True)
class Limits:
    body: int = 16 << 20
    """Bytes of a request"""
    samples: int = 10_000
    """Of a request; candidates count as samples"""
    waiting: int = 64
    """Requests that are answered or wait for it; more are refused at once, for a queue only makes all of them late"""
    seconds: float = 10.0
    """That a body may take to arrive"""


class Service:
    """What is live, behind an application."""

    def __init__(self, live: Reloader, limits: Limits, token: str | None, threads: int) -> None:
        self.live, self.limits, self._token = live, limits, token
        self._taken = 0
        self.registry = CollectorRegistry()
        self._requests = Counter("asymdiffrec_requests", "answered", ["status"], registry=self.registry)
        self._samples = Counter("asymdiffrec_samples", "scored", registry=self.registry)
        self._seconds = Histogram(
            "asymdiffrec_request_seconds", "of an answer", buckets=SECONDS, registry=self.registry
        )
        swaps = Gauge("asymdiffrec_swaps", "of one version for another", registry=self.registry)
        swaps.set_function(lambda: live.swaps)
        refused = Gauge("asymdiffrec_refused", "1 while a version is there that is not fit", registry=self.registry)
        refused.set_function(lambda: live.refused is not None)
        self._scoring = Batcher(live.engine, threads, limits.samples, self._samples.inc)

    async def score(self, request: Request) -> Response:
        """POST /v1/score"""
        return await self._counted(request, SCORES)

    async def rank(self, request: Request) -> Response:
        """POST /v1/rank"""
        return await self._counted(request, RANKINGS)

    async def _counted(self, request: Request, readers: Mapping[str, Read]) -> Response:
        start, status = time.perf_counter(), 500
        try:
            response = await self._answered(request, readers)
            status = response.status_code
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            status = GONE
            raise
        finally:
            self._requests.labels(str(status)).inc()
            self._seconds.observe(time.perf_counter() - start)

    async def _answered(self, request: Request, readers: Mapping[str, Read]) -> Response:
        self._require_token(request)
        if self._taken >= self.limits.waiting:
            raise HTTPException(503, "too many requests at once", {"Retry-After": "1"})
        self._taken += 1
        try:
            self.live.engine()
            async with asyncio.timeout(self.limits.seconds):
                body = await self._body(request)
            kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
            if kind not in readers:
                raise HTTPException(415, f"content-type {kind}: {JSON} or {ARROW} is expected")
            answer = await asyncio.wrap_future(self._scoring.submit(readers[kind], body))
        except TimeoutError as error:
            raise HTTPException(408, f"the body was not there after {self.limits.seconds:g} seconds") from error
        except RequestError as error:
            raise HTTPException(error.status, str(error), _RETRY if error.status == 503 else None) from error
        finally:
            self._taken -= 1
        return Response(answer, media_type=kind)

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

    async def health(self, request: Request) -> Response:
        """GET /health: the process answers."""
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /ready: the model is loaded, its pages are read, and it has passed its check."""
        told = {"status": "ready", "version": self.live.engine().version}
        return _json(told if self.live.refused is None else {**told, "refused": self.live.refused})

    async def model(self, request: Request) -> Response:
        """GET /v1/model: the card of what is served, and the columns of a sample."""
        self._require_token(request)
        engine = self.live.engine()
        return _json(
            {"version": engine.version, "columns": list(engine.request_schema.columns), "card": engine.export.card}
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json: the interface, with the columns of what is live."""
        self._require_token(request)
        return _json(description(self.live.engine(), self.limits.samples, self._token is not None))

    async def docs(self, request: Request) -> Response:
        """GET /docs: the same to read, and lines to try."""
        self._require_token(request)
        told = description(self.live.engine(), self.limits.samples, self._token is not None)
        return Response(page(told, str(request.base_url).rstrip("/")), media_type="text/html")

    def application(self) -> Starlette:
        """Once it ends, nothing is swapped in any more."""

        @asynccontextmanager
        async def lifespan(application: Starlette) -> AsyncIterator[None]:
            yield
            self.live.close()

        routes = [
            Route("/v1/score", self.score, methods=["POST"]),
            Route("/v1/rank", self.rank, methods=["POST"]),
            Route("/v1/model", self.model),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.docs),
        ]
        handlers = {HTTPException: _refused, RequestError: _refused, ClientDisconnect: _gone}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


_RETRY = {"Retry-After": "1"}


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return _json({"error": str(error)}, error.status)
    assert isinstance(error, HTTPException)
    response = _json({"error": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _gone(request: Request, error: Exception) -> Response:
    """To nobody"""
    return Response(status_code=GONE)


def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type=JSON)
