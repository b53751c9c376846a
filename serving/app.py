"""The HTTP application: scores and rankings, health, readiness, metrics, and a description of the model."""

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

from asymdiffrec.serving.batcher import Batcher, ParseBody
from asymdiffrec.serving.errors import RequestError
from asymdiffrec.serving.openapi import docs_page, openapi_document
from asymdiffrec.serving.protocol import (
    ARROW,
    JSON,
    ArrowRankRequest,
    ArrowScoreRequest,
    JsonRankRequest,
    JsonScoreRequest,
)
from asymdiffrec.serving.reloader import Reloader

CLIENT_CLOSED_REQUEST = 499
"""Status in the metrics for requests whose client disconnected before the response; nginx uses the same number"""
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Upper bounds of the buckets of the response-time histogram, in seconds"""
SCORE_PARSERS: Mapping[str, ParseBody] = {JSON: JsonScoreRequest, ARROW: ArrowScoreRequest}
RANK_PARSERS: Mapping[str, ParseBody] = {JSON: JsonRankRequest, ARROW: ArrowRankRequest}


@dataclass(frozen=True)
class Limits:
    """Limits on the requests of one process."""

    body_bytes: int = 16 << 20
    """Maximum size of a request body"""
    samples: int = 10_000
    """Maximum number of samples or candidates in a request"""
    requests: int = 64
    """Maximum number of requests in progress. Further requests get status 503 immediately, because a longer queue would
    only delay all responses."""
    body_seconds: float = 10.0
    """Maximum time in seconds until a complete request body has arrived"""


class Service:
    """The request handlers of the application, with their metrics.

    reloader: provides the current engine.
    token: the token that requests must send as `Authorization: Bearer TOKEN`; None: requests need no token.
    threads: number of scoring threads.

        reloader = Reloader(Path("model"))
        reloader.load()
        app = Service(reloader, Limits(), token=None, threads=2).application()
    """

    def __init__(self, reloader: Reloader, limits: Limits, token: str | None, threads: int) -> None:
        self.reloader, self.limits, self._token = reloader, limits, token
        self._requests_in_progress = 0
        self.registry = CollectorRegistry()
        self._request_count = Counter(
            "asymdiffrec_requests", "Requests to /v1/score and /v1/rank", ["status"], registry=self.registry
        )
        self._sample_count = Counter("asymdiffrec_samples", "Samples and candidates scored", registry=self.registry)
        self._request_seconds = Histogram(
            "asymdiffrec_request_seconds",
            "Seconds from request to response of /v1/score and /v1/rank",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        reloads = Gauge("asymdiffrec_reloads", "Times that a new version was loaded", registry=self.registry)
        reloads.set_function(lambda: reloader.reloads)
        failed = Gauge(
            "asymdiffrec_reload_failed",
            "1 while the export in the folder cannot be loaded and an older version answers, else 0",
            registry=self.registry,
        )
        failed.set_function(lambda: reloader.reload_error is not None)
        self._batcher = Batcher(reloader.engine, threads, limits.samples, self._sample_count.inc)

    async def score(self, request: Request) -> Response:
        """Handle POST /v1/score."""
        return await self._measure(request, SCORE_PARSERS)

    async def rank(self, request: Request) -> Response:
        """Handle POST /v1/rank."""
        return await self._measure(request, RANK_PARSERS)

    async def _measure(self, request: Request, parsers: Mapping[str, ParseBody]) -> Response:
        """Answer a request, and record its status and response time in the metrics."""
        start, status = time.perf_counter(), 500
        try:
            response = await self._respond(request, parsers)
            status = response.status_code
            return response
        except HTTPException as error:
            status = error.status_code
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            self._request_count.labels(str(status)).inc()
            self._request_seconds.observe(time.perf_counter() - start)

    async def _respond(self, request: Request, parsers: Mapping[str, ParseBody]) -> Response:
        self._require_token(request)
        if self._requests_in_progress >= self.limits.requests:
            raise HTTPException(
                503, f"{self.limits.requests} requests are already in progress; try again later", _RETRY_LATER
            )
        self._requests_in_progress += 1
        try:
            self.reloader.engine()
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._read_body(request)
            content_type = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
            if content_type not in parsers:
                raise HTTPException(415, f"content-type {content_type}: {JSON} or {ARROW} is expected")
            response = await asyncio.wrap_future(self._batcher.submit(parsers[content_type], body))
        except TimeoutError as error:
            raise HTTPException(
                408, f"the request body did not arrive within {self.limits.body_seconds:g} seconds"
            ) from error
        except RequestError as error:
            raise HTTPException(error.status, str(error), _RETRY_LATER if error.status == 503 else None) from error
        finally:
            self._requests_in_progress -= 1
        return Response(response, media_type=content_type)

    def _require_token(self, request: Request) -> None:
        header = request.headers.get("authorization", "")
        if self._token is not None and not hmac.compare_digest(header.encode(), f"Bearer {self._token}".encode()):
            raise HTTPException(
                401, "the token is missing or wrong; send the header Authorization: Bearer TOKEN", _ASK_FOR_TOKEN
            )

    async def _read_body(self, request: Request) -> bytes:
        """Return the request body; raise HTTPException (413) as soon as it is too large."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.limits.body_bytes:
                raise HTTPException(413, f"the body has more than {self.limits.body_bytes:,} bytes")
            parts.append(part)
        return b"".join(parts)

    async def health(self, request: Request) -> Response:
        """Handle GET /health: return status 200, which shows that the process runs."""
        return _json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Handle GET /ready: return the version, or status 503 until a model is loaded.

        A model is loaded when its tables are in memory and its self-test has passed. If the server cannot load the
        export that is now in the folder, the response also has the key `reload_error`.
        """
        document = {"status": "ready", "version": self.reloader.engine().version}
        error = self.reloader.reload_error
        return _json_response(document if error is None else {**document, "reload_error": error})

    async def model(self, request: Request) -> Response:
        """Handle GET /v1/model: return the version, the columns of a sample, and the card of the export."""
        self._require_token(request)
        engine = self.reloader.engine()
        columns = list(engine.request_schema.columns)
        return _json_response({"version": engine.version, "columns": columns, "card": engine.export.card})

    async def metrics(self, request: Request) -> Response:
        """Handle GET /metrics: return the metrics in the text format of Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> Response:
        """Handle GET /openapi.json: return the OpenAPI document with the columns of the current model."""
        self._require_token(request)
        return _json_response(self._openapi_document())

    async def docs(self, request: Request) -> Response:
        """Handle GET /docs: return an HTML page that describes the interface, with example commands."""
        self._require_token(request)
        html = docs_page(self._openapi_document(), str(request.base_url).rstrip("/"))
        return Response(html, media_type="text/html")

    def _openapi_document(self) -> dict[str, Any]:
        return openapi_document(self.reloader.engine(), self.limits.samples, self._token is not None)

    def application(self) -> Starlette:
        """Return the ASGI application. When it shuts down, the reloader stops watching its folder."""

        @asynccontextmanager
        async def lifespan(application: Starlette) -> AsyncIterator[None]:
            yield
            self.reloader.close()

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
        handlers = {
            HTTPException: _error_response,
            RequestError: _error_response,
            ClientDisconnect: _disconnect_response,
        }
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


_RETRY_LATER = {"Retry-After": "1"}
_ASK_FOR_TOKEN = {"WWW-Authenticate": "Bearer"}


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return _json_response({"error": str(error)}, error.status)
    assert isinstance(error, HTTPException)
    response = _json_response({"error": error.detail}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _disconnect_response(request: Request, error: Exception) -> Response:
    """Return a response that nobody receives, because Starlette needs a response."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _json_response(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type=JSON)
