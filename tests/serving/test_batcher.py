"""Each request gets its own scores, even if requests are scored together; only a wrong request gets an error."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import orjson
import pytest

from asymdiffrec.serving.batcher import Batcher
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.errors import RequestError
from asymdiffrec.serving.export import load_export
from asymdiffrec.serving.protocol import JsonScoreRequest

TIMEOUT_SECONDS = 120


@pytest.fixture(scope="module")
def engine(exported: Path) -> Engine:
    return Engine(load_export(exported))


@pytest.fixture
def batcher(engine: Engine) -> Batcher:
    return Batcher(lambda: engine, threads=2, max_samples=10_000)


def count_threads() -> int:
    """Return the number of threads that score, of all batchers of this process."""
    return sum(thread.name.startswith("scoring") for thread in threading.enumerate())


def test_request_without_a_field_gets_as_many_scores_as_it_has_samples(batcher: Batcher) -> None:
    """Requests may have the label column, so these samples have no column that the model reads."""
    bodies = [b'{"samples": {"label": [0, 1, 0]}}', b'{"samples": [{"user_id": 7}]}'] * 8
    futures = [batcher.submit(JsonScoreRequest, body) for body in bodies]
    lengths = [len(orjson.loads(future.result(TIMEOUT_SECONDS))["scores"]) for future in futures]
    assert lengths == [3, 1] * 8


def test_cancelled_requests_do_not_end_the_threads(batcher: Batcher) -> None:
    before = count_threads()
    for _ in range(20):
        batcher.submit(JsonScoreRequest, b'{"samples": [{}]}').cancel()
    future = batcher.submit(JsonScoreRequest, b'{"samples": [{}]}')
    assert len(orjson.loads(future.result(TIMEOUT_SECONDS))["scores"]) == 1
    assert count_threads() == before >= 2


def test_requests_beside_a_wrong_one_are_answered(batcher: Batcher, engine: Engine) -> None:
    """The first requests keep both threads busy while the other requests wait in the queue."""
    bodies = [b'{"samples": [{"user_id": %d}]}' % user for user in range(8)]
    bodies[3:3] = [b'{"samples": [{"user_id": "me"}]}', b"{"]
    alone = [engine.score(engine.request_schema.table([{"user_id": user}])) for user in range(8)]
    futures = [batcher.submit(JsonScoreRequest, body) for body in bodies]
    errors = [future.exception(TIMEOUT_SECONDS) for future in futures[3:5]]
    assert [error.status for error in errors if isinstance(error, RequestError)] == [422, 400]
    scores = [orjson.loads(future.result(TIMEOUT_SECONDS))["scores"][0] for future in futures[:3] + futures[5:]]
    np.testing.assert_allclose(scores, [scored.scores[0] for scored in alone], atol=1e-6)
