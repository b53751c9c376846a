"""The client against a server on a socket: all kinds of requests give the same scores, and errors are raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import uvicorn

from asymdiffrec.serving.app import Limits
from asymdiffrec.serving.client import Client, ServingError
from asymdiffrec.serving.service_config import ServiceConfig


@pytest.fixture(scope="module")
def address(exported: Path) -> Iterator[str]:
    service = ServiceConfig(exported, Limits(samples=700), token="secret", threads=1).start(print)
    server = uvicorn.Server(uvicorn.Config(service.application(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def connection(address: str) -> Iterator[Client]:
    with Client(address, token="secret", timeout=120) as connection:
        yield connection


def test_all_ways_to_ask_give_the_same_scores(connection: Client, samples: pa.Table) -> None:
    samples = samples.select(connection.model()["columns"])
    scored = connection.score(samples.to_pylist(), without_denoiser=True)
    assert scored.scores.shape == (len(samples),)
    assert scored.version == connection.model()["version"]
    assert scored.without_denoiser is not None
    complete = np.array([not fields for fields in scored.missing])
    np.testing.assert_allclose(scored.without_denoiser[complete], scored.scores[complete], atol=1e-6)
    assert (scored.without_denoiser[~complete] != scored.scores[~complete]).any()
    np.testing.assert_allclose(connection.score(samples.to_pydict()).scores, scored.scores, atol=1e-6)
    np.testing.assert_allclose(connection.score_table(samples), scored.scores, atol=1e-6)

    ranking = connection.rank({}, samples.to_pylist())
    assert ranking.candidates.tolist() == np.argsort(-scored.scores, kind="stable").tolist()
    np.testing.assert_allclose(ranking.scores, scored.scores[ranking.candidates], atol=1e-6)
    best = connection.rank_table({}, samples, top=5)
    assert (best.version, best.candidates.tolist()) == (scored.version, ranking.candidates[:5].tolist())
    queries = [({}, samples.to_pydict()), ({"user_id": 5}, [{"item_id": 1}])]
    first, second = connection.rank_each(queries, top=5)
    np.testing.assert_array_equal(first.candidates, best.candidates)
    assert second.candidates.tolist() == [0]


def test_server_errors_are_raised_with_status_and_message(connection: Client, address: str) -> None:
    with pytest.raises(ServingError, match=r"422: samples\[0\].agee: no such column; did you mean age\?"):
        connection.score([{"agee": 3}])
    with pytest.raises(ServingError, match="413: found 701 samples; at most 700 are allowed in a request"):
        connection.score([{}] * 701)
    with Client(address) as stranger, pytest.raises(ServingError, match="401: the token is missing or wrong"):
        stranger.score([{}])
    unreachable = Client("http://127.0.0.1:9", retries=1)
    with unreachable, pytest.raises(ServingError, match=r"http://127\.0\.0\.1:9"):
        unreachable.score([{}])
