"""The application: the scores of batch prediction over JSON and Arrow, and an answer that says what is wrong."""

from __future__ import annotations

import html
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from starlette.testclient import TestClient

from asymdiffrec.serving.app import Limits, Service
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.protocol import ARROW, JsonScoreRequest, RequestError, stream_of
from asymdiffrec.serving.protocol import JSON as JSON_KIND
from asymdiffrec.serving.reloader import Reloader
from asymdiffrec.trainer.inference.predict import predict_run


def service(exported: Path, token: str | None = None, **limits: int) -> Service:
    live = Reloader(exported)
    live.load()
    return Service(live, Limits(**limits), token, threads=2)


@pytest.fixture(scope="module")
def client(exported: Path) -> Iterator[TestClient]:
    with TestClient(service(exported).application()) as client:
        yield client


@pytest.fixture(scope="module")
def rows(clicks: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The test split with its scores by batch prediction."""
    out = tmp_path_factory.mktemp("predicted") / "scores.parquet"
    predict_run(exported, str(clicks / "test"), out, Console(quiet=True))
    return pq.read_table(out)


def test_json_and_arrow_score_as_batch_prediction_does(client: TestClient, rows: pa.Table) -> None:
    samples = rows.drop_columns(["score"])
    answer = client.post("/v1/score", json={"samples": samples.to_pylist(), "before": True})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    np.testing.assert_allclose(told["scores"], rows["score"].to_numpy(), atol=1e-6)
    complete = [not missing for missing in told["missing"]]
    np.testing.assert_allclose(np.array(told["before"])[complete], np.array(told["scores"])[complete], atol=1e-6)
    for row, missing in zip(samples.to_pylist()[:50], told["missing"], strict=False):
        assert set(missing) == {name for name, value in row.items() if value is None or value == []}

    answer = client.post("/v1/score", content=stream_of(samples), headers={"content-type": ARROW})
    assert answer.status_code == 200, answer.text
    found = pa.ipc.open_stream(answer.content).read_all()
    np.testing.assert_allclose(found["score"].to_numpy(), rows["score"].to_numpy(), atol=1e-6)
    assert found.schema.metadata[b"version"].decode() == told["version"]


def test_absent_null_and_out_of_range_are_missing(client: TestClient, rows: pa.Table) -> None:
    sample = rows.drop_columns(["score"]).slice(0, 1).to_pylist()[0] | {"item_id": 3, "user_id": 5, "tags": [1, 2]}
    absent = {name: value for name, value in sample.items() if name not in ("item_id", "tags")}
    samples = [absent, sample | {"item_id": None, "tags": []}, sample | {"item_id": 10**9, "tags": [-1, 10**12]}]
    told = client.post("/v1/score", json={"samples": samples}).json()
    assert told["scores"][0] == told["scores"][1] == told["scores"][2]
    assert all({"item_id", "tags"} <= set(missing) for missing in told["missing"])
    some = client.post("/v1/score", json={"samples": [sample, sample | {"tags": [1, 10**12, 2]}]}).json()
    assert some["scores"][0] == some["scores"][1]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "found no object"),
        (b'{"samples": 3}', 400, "found no samples"),
        (b'{"samples": [], "sample": 1}', 400, "sample: no such key"),
        (b'{"samples": [3]}', 422, "samples[0]: found 3; an object of columns is expected"),
        (b'{"samples": [{}, {"agee": 3}]}', 422, "samples[1].agee: no such column; did you mean age?"),
        (b'{"samples": [{}, {"age": "old"}]}', 422, "samples[1].age: found 'old'; a number is expected"),
        (b'{"samples": [{"age": true}]}', 422, "samples[0].age: found True; a number is expected"),
        (b'{"samples": [{"user_id": 1.5}]}', 422, "samples[0].user_id: found 1.5; an integer is expected"),
        (b'{"samples": [{"tags": 3}]}', 422, "samples[0].tags: found 3; a list of integers is expected"),
        (b'{"samples": [{"city": 3.5}]}', 422, "samples[0].city: found 3.5; a string is expected"),
        (b'{"samples": [{"user_id": "x"}]}', 422, "samples[0].user_id: found 'x'; an integer is expected"),
        (b'{"samples": [], "before": "no"}', 400, "before: found 'no'; true or false is expected"),
        (
            b'{"samples": [{"tags": [1, null]}]}',
            422,
            "samples[0].tags: found [1, None]; a list of integers is expected",
        ),
        (b'{"samples": [{"age": 1e39}]}', 422, "samples[0].age: found 1e+39; a number is expected"),
        (b'{"samples": {"age": [1, "old"]}}', 422, "samples.age[1]: found 'old'; a number is expected"),
        (b'{"samples": {"age": 3}}', 422, "samples.age: found 3; a list of values is expected"),
        (b'{"samples": {"age": [1], "city": []}}', 422, "samples: 0 values of city, 1 of age"),
        (b'{"samples": {"agee": [1]}}', 422, "samples.agee: no such column; did you mean age?"),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, body: bytes, status: int, message: str) -> None:
    answer = client.post("/v1/score", content=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_values_are_converted_as_in_training(client: TestClient) -> None:
    pairs = [
        ({"user_id": "5", "city": "7", "tags": [1, 2]}, {"user_id": 5, "city": 7, "tags": ["1", "2"]}),
        ({"income": 1700000000000000001}, {"income": 1.7e18}),
    ]
    for first, second in pairs:
        one, other = client.post("/v1/score", json={"samples": [first, second]}).json()["scores"]
        assert one == pytest.approx(other, abs=1e-6)
    table = pa.table({"user_id": pa.array([5], pa.int32()), "income": pa.array([2**60 + 1])})
    answer = client.post("/v1/score", content=stream_of(table), headers={"content-type": ARROW})
    assert answer.status_code == 200, answer.text


def test_a_request_without_a_field_gets_its_own_scores(exported: Path) -> None:
    """Its columns stand beside the fields; it is scored together with another one."""
    made = service(exported)
    bodies = [b'{"samples": {"label": [0, 1, 0]}}', b'{"samples": [{"user_id": 7}]}'] * 8
    futures = [made._scoring.submit(JsonScoreRequest, body) for body in bodies]
    lengths = [len(orjson.loads(future.result(20))["scores"]) for future in futures]
    assert lengths == [3, 1] * 8


def test_who_does_not_wait_takes_nobody_with_them(exported: Path) -> None:
    made = service(exported)
    for _ in range(20):
        made._scoring.submit(JsonScoreRequest, b'{"samples": [{}]}').cancel()
    future = made._scoring.submit(JsonScoreRequest, b'{"samples": [{}]}')
    assert len(orjson.loads(future.result(20))["scores"]) == 1
    assert sum(thread.name.startswith("scoring") and thread.is_alive() for thread in threading.enumerate()) >= 2


@pytest.mark.parametrize(
    ("table", "status", "message"),
    [
        (pa.table([[1], [2]], names=["age", "age"]), 422, "age: 2 columns have this name"),
        (pa.table({"agee": [1]}), 422, "column.agee: no such column; did you mean age?"),
        (pa.table({"tags": pa.array([[None] * 20_000])}), 422, "tags: a column of list<item: null>"),
        (pa.table({"city": pa.array(["x" * 2**20] * 100).dictionary_encode()}), 422, "city: a column of dictionary"),
        (pa.table({"tags": pa.array([{"a": 1}])}), 422, "tags: a column of struct"),
        (pa.table({"user_id": [1.5]}), 422, "user_id: a column of double; an integer is expected"),
    ],
)
def test_arrow_columns_that_are_wrong(client: TestClient, table: pa.Table, status: int, message: str) -> None:
    answer = client.post("/v1/score", content=stream_of(table), headers={"content-type": ARROW})
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_arrow_whose_size_nobody_knows(client: TestClient) -> None:
    sink, table = pa.BufferOutputStream(), pa.table({"age": np.zeros(1_000)})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    answer = client.post("/v1/score", content=bytes(sink.getvalue()), headers={"content-type": ARROW})
    assert (answer.status_code, answer.json()["error"]) == (415, "a compressed Arrow stream; send it as it is")
    whole = stream_of(pa.table({"age": np.zeros(10), "city": pa.array(["a"] * 10).dictionary_encode()}))
    rng = np.random.default_rng(0)
    for _ in range(300):
        spoilt = bytearray(whole)
        spoilt[rng.integers(len(spoilt))] = rng.integers(256)
        answer = client.post("/v1/score", content=bytes(spoilt), headers={"content-type": ARROW})
        assert answer.status_code in (200, 400, 413, 415, 422), answer.text


USERS = ("user_id", "history", "age", "gender", "income", "city")


def test_candidates_rank_as_samples_score(client: TestClient, rows: pa.Table) -> None:
    samples = rows.drop_columns(["score"]).slice(0, 60)
    columns = client.get("/v1/model").json()["columns"]
    shared = {name: samples[name][0].as_py() for name in USERS}
    own = samples.select([name for name in columns if name not in USERS])
    whole = [shared | candidate for candidate in own.to_pylist()]
    scores = np.array(client.post("/v1/score", json={"samples": whole}).json()["scores"])
    best = np.argsort(-scores, kind="stable")

    told = client.post("/v1/rank", json={"shared": shared, "candidates": own.to_pylist()}).json()
    np.testing.assert_allclose(told["scores"], np.sort(scores)[::-1], atol=1e-6)
    np.testing.assert_allclose(scores[told["candidates"]], told["scores"], atol=1e-6)
    by_column = client.post("/v1/rank", json={"shared": shared, "candidates": own.to_pydict(), "top": 3}).json()
    assert by_column["candidates"] == best[:3].tolist()
    queries = [{"shared": shared, "candidates": own.to_pydict()}, {"candidates": []}]
    first, second = client.post("/v1/rank", json=queries).json()
    assert (first, second["scores"]) == (told, [])

    described = own.replace_schema_metadata({"shared": orjson.dumps(shared), "top": "3"})
    answer = client.post("/v1/rank", content=stream_of(described), headers={"content-type": ARROW})
    found = pa.ipc.open_stream(answer.content).read_all()
    assert found["candidate"].to_pylist() == best[:3].tolist()
    np.testing.assert_allclose(found["score"].to_numpy(), by_column["scores"], atol=1e-6)


def test_queries_that_are_answered_together_keep_apart(client: TestClient) -> None:
    items = {"candidates": {"item_id": [3, 4, 5], "price": [1.0, None, 9.5]}}
    queries = [
        {"shared": {"user_id": 5, "history": [3, 8]}, **items},
        {"shared": {"item_id": 3}, "candidates": {"tags": [[1], None, [2, 3]]}},
        {"shared": {"user_id": 6, "age": 40.0}, "candidates": {"item_id": [9], "price": [2.5]}},
        {"candidates": {"item_id": [], "price": []}},
        {"shared": {"user_id": 7}, "candidates": [{}, {}]},
        {"shared": {"income": 1e4}, **items},
    ]
    together = client.post("/v1/rank", json=queries).json()
    for query, told in zip(queries, together, strict=True):
        alone = client.post("/v1/rank", json=query).json()
        assert told["candidates"] == alone["candidates"]
        np.testing.assert_allclose(told["scores"], alone["scores"], atol=1e-6)
    assert len({one["scores"][0] for one in together if one["scores"]}) == 5


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{}", 400, "found no candidates"),
        (b'{"candidates": [], "top": 0}', 400, "top: found 0; a number of candidates is expected"),
        (b'{"shared": 3, "candidates": []}', 422, "shared: found 3; an object of columns is expected"),
        (b'{"shared": {"ag": 3}, "candidates": []}', 422, "shared.ag: no such column; did you mean age?"),
        (b'{"shared": {"age": 3}, "candidates": [{}, {"age": 4}]}', 422, "candidates: age is in shared, too"),
        (b'[{"candidates": []}, {"candidates": [{"age": "x"}]}]', 422, "[1].candidates[0].age: found 'x'"),
    ],
)
def test_what_is_wrong_with_a_query_is_said(client: TestClient, body: bytes, status: int, message: str) -> None:
    answer = client.post("/v1/rank", content=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_who_is_scored_together_with_a_wrong_request_is_answered(exported: Path) -> None:
    """One thread is held by the first request while the others gather."""
    made = service(exported)
    bodies = [b'{"samples": [{"user_id": %d}]}' % user for user in range(8)]
    bodies[3:3] = [b'{"samples": [{"user_id": "me"}]}', b"{"]
    alone = [
        made.live.engine().score(made.live.engine().request_schema.table([{"user_id": user}])) for user in range(8)
    ]
    futures = [made._scoring.submit(JsonScoreRequest, body) for body in bodies]
    wrong = [future.exception(20) for future in futures[3:5]]
    assert [error.status for error in wrong if isinstance(error, RequestError)] == [422, 400]
    found = [orjson.loads(future.result(20))["scores"][0] for future in futures[:3] + futures[5:]]
    np.testing.assert_allclose(found, [answer.scores[0] for answer in alone], atol=1e-6)


def test_it_describes_itself(client: TestClient, exported: Path) -> None:
    document = client.get("/openapi.json").json()
    columns = client.get("/v1/model").json()["columns"]
    assert list(document["components"]["schemas"]["Sample"]["properties"]) == columns
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    lines = re.findall(r"<pre>curl http://testserver(/v1/\w+) -H .*? -d (.*?)</pre>", page.text)
    assert [path for path, _ in lines] == ["/v1/score", "/v1/rank"]
    for path, body in lines:
        answer = client.post(path, content=html.unescape(body).strip("'"), headers={"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
    with TestClient(service(exported, token="secret").application()) as guarded:
        assert guarded.get("/openapi.json").status_code == 401
        told = guarded.get("/openapi.json", headers={"authorization": "Bearer secret"}).json()
        assert told["security"] == [{"token": []}]


def test_arrow_that_is_wrong(client: TestClient) -> None:
    headers = {"content-type": ARROW}
    assert "not an Arrow stream" in client.post("/v1/score", content=b"x" * 40, headers=headers).json()["error"]
    answer = client.post("/v1/score", content=stream_of(pa.table({"age": ["old"]})), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (422, "age: a column of string; a number is expected")
    assert client.post("/v1/score", content=b"", headers={"content-type": "text/plain"}).status_code == 415


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _arrow_of(columns: dict[str, list[Any]]) -> bytes:
    """A table of two rows, or half of it."""
    made = stream_of(pa.table({name: pa.array(values) for name, values in columns.items()}))
    return made[: len(made) // (1 + len(columns) % 2)]


def _two(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, min_size=2, max_size=2)


INTEGERS = st.integers(-(2**63), 2**63 - 1)
COLUMN = st.one_of(
    *map(_two, (INTEGERS, st.floats(), st.text(max_size=3), st.booleans(), st.lists(INTEGERS, max_size=3)))
)
NAMES = ("user_id", "history", "age", "city", "tags", "price", "hour", "nobody")
SAMPLE = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4)
EXAMPLES = int(os.environ.get("ASYMDIFFREC_FUZZ", "300"))
"""Of malformed requests; many for an hour in which there is time"""
BODY = st.one_of(
    st.binary(max_size=60),
    JSON,
    st.fixed_dictionaries({"samples": JSON | st.lists(SAMPLE, max_size=3)}),
    st.fixed_dictionaries(
        {"shared": JSON | SAMPLE, "candidates": JSON | SAMPLE | st.lists(SAMPLE, max_size=3), "top": JSON}
    ),
    st.dictionaries(st.sampled_from(NAMES), COLUMN, max_size=4).map(_arrow_of),
)


@settings(deadline=None, derandomize=True, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(body=BODY, kind=st.sampled_from([JSON_KIND, ARROW]), path=st.sampled_from(["/v1/score", "/v1/rank"]))
def test_nothing_that_is_sent_breaks_it(
    client: TestClient, known: tuple[Any, Any], body: Any, kind: str, path: str
) -> None:
    try:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
    except TypeError:
        content = repr(body).encode()
    answer = client.post(path, content=content, headers={"content-type": kind})
    assert answer.status_code in (200, 400, 413, 422)
    if answer.status_code != 200:
        assert answer.json()["error"]
    elif kind == JSON_KIND and answer.json():
        assert "scores" in (answer.json() if isinstance(answer.json(), dict) else answer.json()[0])
    asked, scores = known
    assert client.post("/v1/score", json=asked).json()["scores"] == scores, "and others are answered as before"


@pytest.fixture(scope="module")
def known(client: TestClient) -> tuple[Any, Any]:
    asked = {"samples": [{"user_id": 5, "age": 0.5}, {}]}
    return asked, client.post("/v1/score", json=asked).json()["scores"]


def test_limits(exported: Path) -> None:
    with TestClient(service(exported, body=200, samples=2).application()) as client:
        assert client.post("/v1/score", json={"samples": [{}, {}]}).status_code == 200
        answer = client.post("/v1/score", json={"samples": [{}, {}, {}]})
        assert (answer.status_code, answer.json()["error"]) == (413, "3 samples; 2 are allowed in a request")
        answer = client.post("/v1/score", content=b" " * 300)
        assert (answer.status_code, answer.json()["error"]) == (413, "a body of more than 200 bytes")


def test_a_token(exported: Path) -> None:
    with TestClient(service(exported, token="secret").application()) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            assert client.post("/v1/score", json={"samples": []}, headers=headers).status_code == 401
            assert client.get("/v1/model", headers=headers).status_code == 401
        right = {"authorization": "Bearer secret"}
        assert client.post("/v1/score", json={"samples": []}, headers=right).json()["scores"] == []
        assert client.get("/health").status_code == 200


def test_too_many_are_refused_at_once(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = service(exported, waiting=1)
    entered, leave = threading.Event(), threading.Event()
    original = Engine.score

    def slow(self: Engine, *arguments: Any) -> Any:
        entered.set()
        leave.wait(20)
        return original(self, *arguments)

    monkeypatch.setattr(Engine, "score", slow)
    with TestClient(made.application()) as client:
        first: list[int] = []
        thread = threading.Thread(
            target=lambda: first.append(client.post("/v1/score", json={"samples": [{}]}).status_code)
        )
        thread.start()
        assert entered.wait(20)
        answer = client.post("/v1/score", json={"samples": [{}]})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        leave.set()
        thread.join()
        assert first == [200]
        told = client.get("/metrics").text
        assert 'asymdiffrec_requests_total{status="200"} 1.0' in told
        assert 'asymdiffrec_requests_total{status="503"} 1.0' in told
        assert "asymdiffrec_samples_total 1.0" in told


def test_ready_only_with_a_model(exported: Path) -> None:
    live = Reloader(exported)
    made = Service(live, Limits(), None, threads=1)
    with TestClient(made.application()) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/score", json={"samples": [{}]}).status_code == 503
        version = live.load().version
        assert client.get("/ready").json() == {"status": "ready", "version": version}
        told = client.get("/v1/model").json()
        assert told["card"]["precision"] == "fp32"
        assert "user_id" in told["columns"]
