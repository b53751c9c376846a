"""The threads that score: what waits when one of them is free is scored together, for one pass costs little more than
one sample."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import chain

import pyarrow as pa

from asymdiffrec.serving.bodies import Rankings, RefusedError, Scores
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.form import BadRequestError

TOGETHER = 1024
"""Samples that are scored together, but for a request of more"""

Read = Callable[[bytes], Scores | Rankings]
Job = tuple[Read, bytes, Future[bytes]]


class Scoring:
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
            engine, waiting = None, [self._jobs.get()]
            scores: list[tuple[Scores, Future[bytes]]] = []
            count = 0
            while waiting:
                read, body, future = waiting.pop()
                try:
                    engine = engine or self._live()
                    asked = read(body)
                    if len(asked) > self._most:
                        raise RefusedError(413, f"{len(asked):,} samples; {self._most:,} are allowed in a request")
                    if isinstance(asked, Scores):
                        scores.append((asked, future))
                    else:
                        future.set_result(self._ranked(engine, asked))
                except Exception as error:
                    future.set_exception(_told(error))
                    continue
                count += len(asked)
                if count < TOGETHER:
                    try:
                        waiting.append(self._jobs.get_nowait())
                    except queue.Empty:
                        break
            if scores and engine:
                self._score(engine, scores)

    def _ranked(self, engine: Engine, asked: Rankings) -> bytes:
        answers = [engine.rank(query) for query in asked.queries(engine.form)]
        self._scored(len(asked))
        return asked.answer(engine, answers)

    def _score(self, engine: Engine, asked: Sequence[tuple[Scores, Future[bytes]]]) -> None:
        """All of them at once; where one is wrong, one by one, so that the others are answered."""
        try:
            table = _together(engine, [one for one, _ in asked])
            answer = engine.score(table, any(one.before for one, _ in asked))
        except Exception as error:
            if len(asked) == 1:
                asked[0][1].set_exception(_told(error))
            else:
                for alone in asked:
                    self._score(engine, [alone])
            return
        self._scored(len(answer.scores))
        start = 0
        for one, future in asked:
            stop = start + len(one)
            try:
                future.set_result(one.answer(engine, answer.part(start, stop)))
            except Exception as error:
                future.set_exception(_told(error))
            start = stop


def _together(engine: Engine, asked: Sequence[Scores]) -> pa.Table:
    """The samples of all requests, in order; lists of objects that follow each other are read as one."""
    if all(type(one.samples) is list for one in asked):
        return engine.form.table(list(chain.from_iterable(one.samples for one in asked)))
    return pa.concat_tables([one.table(engine.form) for one in asked])


def _told(error: Exception) -> Exception:
    return RefusedError(422, str(error)) if isinstance(error, BadRequestError) else error
