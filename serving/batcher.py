"""Score requests in threads; requests that wait at the same time are scored together.

A forward pass over many samples costs little more than a forward pass over one sample. No request waits for later
requests.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate, chain, islice
from typing import Any

import pyarrow as pa

from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.errors import RequestError, SampleError
from asymdiffrec.serving.protocol import RankRequest, ScoreRequest

MAX_BATCH_SAMPLES = 1024
"""A batch accepts further requests until it has this number of samples. A request with more samples is not split."""

ParseBody = Callable[[bytes], ScoreRequest | RankRequest]
QueuedBody = tuple[ParseBody, bytes, Future[bytes]]
Respond = Callable[[Engine, Sequence[Any]], list[bytes]]


class Batcher:
    """Threads that turn request bodies into response bodies with the current engine.

    current_engine: returns the engine to use, or raises an error for all requests of the batch. It is called once per
    batch, so one version scores all requests of a batch.
    threads: number of threads.
    max_samples: maximum number of samples of a request.
    count_samples: called with the number of samples after each batch.

        batcher = Batcher(reloader.engine, threads=2, max_samples=10_000)
        batcher.submit(JsonScoreRequest, b'{"samples": [{"user_id": 5}]}').result()
    """

    def __init__(
        self,
        current_engine: Callable[[], Engine],
        threads: int,
        max_samples: int,
        count_samples: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._current_engine, self._max_samples, self._count_samples = current_engine, max_samples, count_samples
        self._queue: queue.SimpleQueue[QueuedBody] = queue.SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._run, name=f"scoring-{number}", daemon=True).start()

    def submit(self, parse: ParseBody, body: bytes) -> Future[bytes]:
        """Queue a request body, which `parse` reads. The future returns the response body or raises RequestError."""
        future: Future[bytes] = Future()
        self._queue.put((parse, body, future))
        return future

    def _run(self) -> None:
        while True:
            requests = list(self._next_requests())
            try:
                engine = self._current_engine()
            except Exception as error:
                for _, future in requests:
                    future.set_exception(error)
                continue
            for kind, respond in ((ScoreRequest, _score), (RankRequest, _rank)):
                of_kind = [(request, future) for request, future in requests if isinstance(request, kind)]
                if of_kind:
                    self._respond(engine, respond, of_kind)

    def _next_requests(self) -> Iterator[tuple[Any, Future[bytes]]]:
        """Wait for a request; yield this request and the requests queued behind it.

        Stop when the batch has `MAX_BATCH_SAMPLES` samples or the queue is empty.
        """
        queued, count = self._queue.get(), 0
        while True:
            parse, body, future = queued
            if future.set_running_or_notify_cancel():  # False if the client disconnected
                try:
                    request = parse(body)
                    if len(request) > self._max_samples:
                        raise RequestError(
                            413,
                            f"found {len(request):,} samples; at most {self._max_samples:,} are allowed in a request",
                        )
                except Exception as error:
                    future.set_exception(error)
                else:
                    count += len(request)
                    yield request, future
            try:
                if count >= MAX_BATCH_SAMPLES:
                    return
                queued = self._queue.get_nowait()
            except queue.Empty:
                return

    def _respond(self, engine: Engine, respond: Respond, requests: Sequence[tuple[Any, Future[bytes]]]) -> None:
        """Answer the requests together.

        If a request is wrong, answer each request separately, so that only the wrong request gets an error.
        """
        try:
            bodies = respond(engine, [request for request, _ in requests])
        except Exception as error:
            if len(requests) == 1:
                requests[0][1].set_exception(RequestError(422, str(error)) if isinstance(error, SampleError) else error)
            else:
                for single in requests:
                    self._respond(engine, respond, [single])
            return
        self._count_samples(sum(len(request) for request, _ in requests))
        for (_, future), body in zip(requests, bodies, strict=True):
            future.set_result(body)


def _score(engine: Engine, requests: Sequence[ScoreRequest]) -> list[bytes]:
    table, lengths = _concatenate(engine, requests)
    scored = engine.score(table, any(request.without_denoiser for request in requests))
    ends = list(accumulate(lengths))
    assert len(scored.scores) == ends[-1], "the engine returns one score per sample"
    return [
        request.response(engine, scored.slice(end - length, end))
        for request, length, end in zip(requests, lengths, ends, strict=True)
    ]


def _rank(engine: Engine, requests: Sequence[RankRequest]) -> list[bytes]:
    queries = [request.queries(engine.request_schema) for request in requests]
    scored = iter(engine.rank(list(chain.from_iterable(queries))))
    return [
        request.response(engine, list(islice(scored, len(request_queries))))
        for request, request_queries in zip(requests, queries, strict=True)
    ]


def _concatenate(engine: Engine, requests: Sequence[ScoreRequest]) -> tuple[pa.Table, list[int]]:
    """Return the samples of all requests in one table, and the number of samples of each request."""
    if all(type(request.samples) is list for request in requests):  # a single conversion of all lists is faster
        table = engine.request_schema.table(list(chain.from_iterable(request.samples for request in requests)))
        return table, [len(request.samples) for request in requests]
    tables = [request.table(engine.request_schema) for request in requests]
    return pa.concat_tables(tables), [len(table) for table in tables]
