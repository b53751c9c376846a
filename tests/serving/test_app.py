"""Routes, limits, authorization and metrics of the HTTP application."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from asymdiffrec.serving.app import Limits, Service
from asymdiffrec.serving.arrow_stream import write_stream
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.protocol import ARROW
from asymdiffrec.serving.reloader import Reloader


def test_json_and_arrow_requests_score_like_batch_prediction(
    client: TestClient, predicted: pa.Table, samples: pa.Table
) -> None:
    response = client.post("/v1/score", json={"samples": samples.to_pylist(), "without_denoiser": True})
    assert response.status_code == 200, response.text
    document = response.json()
    scores, without_denoiser = np.array(document["scores"]), np.array(document["without_denoiser"])
    np.testing.assert_allclose(scores, predicted["score"].to_numpy(), atol=1e-6)
    complete = [not missing for missing in document["missing"]]
    np.testing.assert_allclose(without_denoiser[complete], scores[complete], atol=1e-6)
    for sample, missing in zip(samples.to_pylist()[:50], document["missing"], strict=False):
        assert set(missing) == {name for name, value in sample.items() if value is None or value == []}

    response = client.post("/v1/score", content=write_stream(samples), headers={"content-type": ARROW})
    assert response.status_code == 200, response.text
    table = pa.ipc.open_stream(response.content).read_all()
    np.testing.assert_allclose(table["score"].to_numpy(), predicted["score"].to_numpy(), atol=1e-6)
    assert table.schema.metadata[b"version"].decode() == document["version"]


def test_openapi_document_and_docs_page_describe_the_model(
    client: TestClient, make_service: Callable[..., Service]
) -> None:
    document = client.get("/openapi.json").json()
    columns = client.get("/v1/model").json()["columns"]
    assert list(document["components"]["schemas"]["Sample"]["properties"]) == columns
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    commands = re.findall(r"<pre>curl http://testserver(/v1/\w+) -H .*? -d (.*?)</pre>", page.text)
    assert [path for path, _ in commands] == ["/v1/score", "/v1/rank"]
    for path, body in commands:
        content = html.unescape(body).strip("'")
        response = client.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 200, response.text
    with TestClient(make_service(token="secret").application()) as guarded:
        assert guarded.get("/openapi.json").status_code == 401
        document = guarded.get("/openapi.json", headers={"authorization": "Bearer secret"}).json()
        assert document["security"] == [{"token": []}]


def test_requests_above_a_limit_get_413(make_service: Callable[..., Service]) -> None:
    with TestClient(make_service(body_bytes=200, samples=2).application()) as client:
        assert client.post("/v1/score", json={"samples": [{}, {}]}).status_code == 200
        response = client.post("/v1/score", json={"samples": [{}, {}, {}]})
        assert (response.status_code, response.json()["error"]) == (
            413,
            "found 3 samples; at most 2 are allowed in a request",
        )
        response = client.post("/v1/score", content=b" " * 300)
        assert (response.status_code, response.json()["error"]) == (413, "the body has more than 200 bytes")


def test_requests_need_the_token(make_service: Callable[..., Service]) -> None:
    with TestClient(make_service(token="secret").application()) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            assert client.post("/v1/score", json={"samples": []}, headers=headers).status_code == 401
            assert client.get("/v1/model", headers=headers).status_code == 401
        right = {"authorization": "Bearer secret"}
        assert client.post("/v1/score", json={"samples": []}, headers=right).json()["scores"] == []
        assert client.get("/health").status_code == 200


def test_too_many_requests_in_progress_get_503_at_once(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(requests=1)
    entered, leave = threading.Event(), threading.Event()
    score = Engine.score

    def blocked_score(self: Engine, *arguments: Any) -> Any:
        entered.set()
        leave.wait(120)
        return score(self, *arguments)

    monkeypatch.setattr(Engine, "score", blocked_score)
    with TestClient(service.application()) as client:
        first: list[int] = []
        thread = threading.Thread(
            target=lambda: first.append(client.post("/v1/score", json={"samples": [{}]}).status_code)
        )
        thread.start()
        assert entered.wait(120)
        response = client.post("/v1/score", json={"samples": [{}]})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        leave.set()
        thread.join()
        assert first == [200]
        metrics = client.get("/metrics").text
        assert 'asymdiffrec_requests_total{status="200"} 1.0' in metrics
        assert 'asymdiffrec_requests_total{status="503"} 1.0' in metrics
        assert "asymdiffrec_samples_total 1.0" in metrics


def test_service_is_ready_once_a_model_is_loaded(exported: Path) -> None:
    reloader = Reloader(exported)
    with TestClient(Service(reloader, Limits(), None, threads=1).application()) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/score", json={"samples": [{}]}).status_code == 503
        version = reloader.load().version
        assert client.get("/ready").json() == {"status": "ready", "version": version}
        document = client.get("/v1/model").json()
        assert document["card"]["precision"] == "fp32"
        assert "user_id" in document["columns"]
