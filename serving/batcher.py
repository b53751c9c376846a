"""The threads that score: what waits when one of them is free is scored together, for one pass costs little more than
one sample."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate, chain, islice
from typing import Any

import pyarrow as pa

from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.protocol import RankRequest, RequestError, ScoreRequest
from asymdiffrec.serving.request_schema import SampleError

TOGETHER = 1024
"""Samples that are scored together, but for a request of more"""

Read = Callable[[bytes], ScoreRequest | RankRequest]
Job = tuple[Read, bytes, Future[bytes]]
Answering = Callable[[Engine, Sequence[Any]], list[bytes]]


class Batcher:
    """Answers bodies with the engine of the moment.

    live: gives it; most: samples of a request that are allowed; scored: is told how many samples were.
    """

    def __init__(
        self, live: Callable[[], Engine], threads: int, most: int, scored: Callable[[int], None] = lambda count: None
    ) -> None:
        self._live, self._most, self._scored = live, most, scored
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"scoring-{number}", daemon=True).start()

    def submit(self, read: Read, body: bytes) -> Future[bytes]:
        """The bytes of the answer, or RefusedError, of what `read` makes of a body."""
        future: Future[bytes] = Future()
        self._jobs.put((read, body, future))
        return future

    def _work(self) -> None:
        while True:
            asked = list(self._waiting())
            try:
                engine = self._live()
            except Exception as error:
                for _, future in asked:
                    future.set_exception(error)
                continue
            for kind, answer in ((ScoreRequest, _score), (RankRequest, _rank)):
                alike = [(one, future) for one, future in asked if isinstance(one, kind)]
                if alike:
                    self._answer(engine, answer, alike)

    def _waiting(self) -> Iterator[tuple[Any, Future[bytes]]]:
        """What the next body asks for, and what those that wait behind it do."""
        job, count = self._jobs.get(), 0
        while True:
            read, body, future = job
            if future.set_running_or_notify_cancel():  # who has gone is not answered
                try:
                    asked = read(body)
                    if len(asked) > self._most:
                        raise RequestError(413, f"{len(asked):,} samples; {self._most:,} are allowed in a request")
                except Exception as error:
                    future.set_exception(error)
                else:
                    count += len(asked)
                    yield asked, future
            try:
                if count >= TOGETHER:
                    return
                job = self._jobs.get_nowait()
            except queue.Empty:
                return

    def _answer(self, engine: Engine, answer: Answering, asked: Sequence[tuple[Any, Future[bytes]]]) -> None:
        """All of them at once; where one is wrong, one by one, so that the others are answered."""
        try:
            answers = answer(engine, [one for one, _ in asked])
        except Exception as error:
            if len(asked) == 1:
                asked[0][1].set_exception(RequestError(422, str(error)) if isinstance(error, SampleError) else error)
            else:
                for alone in asked:
                    self._answer(engine, answer, [alone])
            return
        self._scored(sum(len(one) for one, _ in asked))
        for (_, future), body in zip(asked, answers, strict=True):
            future.set_result(body)


def _score(engine: Engine, asked: Sequence[ScoreRequest]) -> list[bytes]:
    table, lengths = _together(engine, asked)
    answer = engine.score(table, any(one.before for one in asked))
    ends = list(accumulate(lengths))
    assert len(answer.scores) == ends[-1], "each answer is its own request's"
    return [
        one.answer(engine, answer.part(end - length, end))
        for one, length, end in zip(asked, lengths, ends, strict=True)
    ]


def _rank(engine: Engine, asked: Sequence[RankRequest]) -> list[bytes]:
    queries = [one.queries(engine.request_schema) for one in asked]
    answers = iter(engine.rank(list(chain.from_iterable(queries))))
    return [one.answer(engine, list(islice(answers, len(own)))) for one, own in zip(asked, queries, strict=True)]


def _together(engine: Engine, asked: Sequence[ScoreRequest]) -> tuple[pa.Table, list[int]]:
    """The samples of all requests, in order, and how many each has; lists of objects are read as one."""
    if all(type(one.samples) is list for one in asked):
        table = engine.request_schema.table(list(chain.from_iterable(one.samples for one in asked)))
        return table, [len(one.samples) for one in asked]
    tables = [one.table(engine.request_schema) for one in asked]
    return pa.concat_tables(tables), [len(table) for table in tables]
