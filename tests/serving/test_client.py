"""The client against a server that listens: every way to ask gives the same scores."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn

from asymdiffrec.serving.app import Limits
from asymdiffrec.serving.client import Client, ServingError
from asymdiffrec.serving.service_config import ServiceConfig


@pytest.fixture(scope="module")
def address(exported: Path) -> Iterator[str]:
    serving = ServiceConfig(exported, Limits(samples=700), token="secret", threads=1)
    config = uvicorn.Config(serving.service(print).application(), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, token="secret") as client:
        yield client


@pytest.fixture
def samples(clicks: Path, client: Client) -> pa.Table:
    return pq.read_table(clicks / "test").select(client.model()["columns"])


def test_every_way_to_ask_gives_the_same_scores(client: Client, samples: pa.Table) -> None:
    told = client.score(samples.to_pylist(), before=True)
    assert told.scores.shape == (len(samples),)
    assert told.version == client.model()["version"]
    assert told.before is not None
    complete = np.array([not fields for fields in told.missing])
    np.testing.assert_allclose(told.before[complete], told.scores[complete], atol=1e-6)
    assert (told.before[~complete] != told.scores[~complete]).any()
    np.testing.assert_allclose(client.score(samples.to_pydict()).scores, told.scores, atol=1e-6)
    np.testing.assert_allclose(client.score_table(samples), told.scores, atol=1e-6)

    every = client.rank({}, samples.to_pylist())
    assert every.candidates.tolist() == np.argsort(-told.scores, kind="stable").tolist()
    np.testing.assert_allclose(every.scores, told.scores[every.candidates], atol=1e-6)
    best = client.rank_table({}, samples, top=5)
    assert (best.version, best.candidates.tolist()) == (told.version, every.candidates[:5].tolist())
    first, second = client.rank_each([({}, samples.to_pydict()), ({"user_id": 5}, [{"item_id": 1}])], top=5)
    np.testing.assert_array_equal(first.candidates, best.candidates)
    assert second.candidates.tolist() == [0]


def test_what_the_server_says_is_raised(client: Client, address: str) -> None:
    with pytest.raises(ServingError, match=r"422: samples\[0\].agee: no such column; did you mean age\?"):
        client.score([{"agee": 3}])
    with pytest.raises(ServingError, match="413: 701 samples; 700 are allowed in a request"):
        client.score([{}] * 701)
    with Client(address) as stranger, pytest.raises(ServingError, match="401: a token is needed"):
        stranger.score([{}])
    with Client("http://127.0.0.1:9", retries=1) as nobody, pytest.raises(ServingError, match=r"http://127\.0\.0\.1:9"):
        nobody.score([{}])
