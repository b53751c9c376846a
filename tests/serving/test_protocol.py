"""Requests: conversion of values, error messages for wrong requests, and arbitrary bytes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from asymdiffrec.serving.arrow_stream import write_stream
from asymdiffrec.serving.protocol import ARROW, JSON

ARROW_HEADERS = {"content-type": ARROW}


def test_absent_null_and_out_of_range_values_are_missing(client: TestClient, samples: pa.Table) -> None:
    sample = samples.slice(0, 1).to_pylist()[0] | {"item_id": 3, "user_id": 5, "tags": [1, 2]}
    absent = {name: value for name, value in sample.items() if name not in ("item_id", "tags")}
    variants = [absent, sample | {"item_id": None, "tags": []}, sample | {"item_id": 10**9, "tags": [-1, 10**12]}]
    document = client.post("/v1/score", json={"samples": variants}).json()
    assert document["scores"][0] == document["scores"][1] == document["scores"][2]
    assert all({"item_id", "tags"} <= set(missing) for missing in document["missing"])
    partly = client.post("/v1/score", json={"samples": [sample, sample | {"tags": [1, 10**12, 2]}]}).json()
    assert partly["scores"][0] == partly["scores"][1]


def test_values_are_converted_as_in_training(client: TestClient) -> None:
    pairs = [
        ({"user_id": "5", "city": "7", "tags": [1, 2]}, {"user_id": 5, "city": 7, "tags": ["1", "2"]}),
        ({"income": 1700000000000000001}, {"income": 1.7e18}),
    ]
    for first, second in pairs:
        first_score, second_score = client.post("/v1/score", json={"samples": [first, second]}).json()["scores"]
        assert first_score == pytest.approx(second_score, abs=1e-6)
    table = pa.table({"user_id": pa.array([5], pa.int32()), "income": pa.array([2**60 + 1])})
    response = client.post("/v1/score", content=write_stream(table), headers=ARROW_HEADERS)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "body: not JSON"),
        (b"[]", 400, "found no JSON object"),
        (b'{"samples": 3}', 400, "samples: found no list or object of samples"),
        (b'{"samples": [], "sample": 1}', 400, "sample: no such key"),
        (b'{"samples": [3]}', 422, "samples[0]: found 3; an object of columns is expected"),
        (b'{"samples": [{}, {"agee": 3}]}', 422, "samples[1].agee: no such column; did you mean age?"),
        (b'{"samples": [{}, {"age": "old"}]}', 422, "samples[1].age: found 'old'; a number is expected"),
        (b'{"samples": [{"age": true}]}', 422, "samples[0].age: found True; a number is expected"),
        (b'{"samples": [{"user_id": 1.5}]}', 422, "samples[0].user_id: found 1.5; an integer is expected"),
        (b'{"samples": [{"tags": 3}]}', 422, "samples[0].tags: found 3; a list of integers is expected"),
        (b'{"samples": [{"city": 3.5}]}', 422, "samples[0].city: found 3.5; a string is expected"),
        (b'{"samples": [{"user_id": "x"}]}', 422, "samples[0].user_id: found 'x'; an integer is expected"),
        (
            b'{"samples": [], "without_denoiser": "no"}',
            400,
            "without_denoiser: found 'no'; true or false is expected",
        ),
        (
            b'{"samples": [{"tags": [1, null]}]}',
            422,
            "samples[0].tags: found [1, None]; a list of integers is expected",
        ),
        (b'{"samples": [{"age": 1e39}]}', 422, "samples[0].age: found 1e+39; a number is expected"),
        (b'{"samples": {"age": [1, "old"]}}', 422, "samples.age[1]: found 'old'; a number is expected"),
        (b'{"samples": {"age": 3}}', 422, "samples.age: found 3; a list of values is expected"),
        (b'{"samples": {"age": [1], "city": []}}', 422, "samples: city has 0 values, age has 1"),
        (b'{"samples": {"agee": [1]}}', 422, "samples.agee: no such column; did you mean age?"),
    ],
)
def test_error_says_where_a_score_request_is_wrong(client: TestClient, body: bytes, status: int, message: str) -> None:
    response = client.post("/v1/score", content=body)
    assert response.status_code == status
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{}", 400, "candidates: found no list or object of samples"),
        (b'{"candidates": [], "top": 0}', 400, "top: found 0; a number of candidates, at least 1, is expected"),
        (b'{"shared": 3, "candidates": []}', 422, "shared: found 3; an object of columns is expected"),
        (b'{"shared": {"ag": 3}, "candidates": []}', 422, "shared.ag: no such column; did you mean age?"),
        (
            b'{"shared": {"age": 3}, "candidates": [{}, {"age": 4}]}',
            422,
            "candidates: the column age is also in shared",
        ),
        (b'[{"candidates": []}, {"candidates": [{"age": "x"}]}]', 422, "[1].candidates[0].age: found 'x'"),
    ],
)
def test_error_says_where_a_rank_request_is_wrong(client: TestClient, body: bytes, status: int, message: str) -> None:
    response = client.post("/v1/rank", content=body)
    assert response.status_code == status
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("table", "status", "message"),
    [
        (pa.table([[1], [2]], names=["age", "age"]), 422, "age: 2 columns have this name"),
        (pa.table({"agee": [1]}), 422, "column.agee: no such column; did you mean age?"),
        (pa.table({"tags": pa.array([[None] * 20_000])}), 422, "tags: found a column of list<item: null>"),
        (
            pa.table({"city": pa.array(["x" * 2**20] * 100).dictionary_encode()}),
            422,
            "city: found a column of dictionary",
        ),
        (pa.table({"tags": pa.array([{"a": 1}])}), 422, "tags: found a column of struct"),
        (pa.table({"user_id": [1.5]}), 422, "user_id: found a column of double; an integer is expected"),
    ],
)
def test_error_names_the_wrong_arrow_column(client: TestClient, table: pa.Table, status: int, message: str) -> None:
    response = client.post("/v1/score", content=write_stream(table), headers=ARROW_HEADERS)
    assert (response.status_code, message in response.json()["error"]) == (status, True), response.text


def test_malformed_arrow_and_other_content_types_are_refused(client: TestClient) -> None:
    response = client.post("/v1/score", content=b"x" * 40, headers=ARROW_HEADERS)
    assert "not an Arrow stream" in response.json()["error"]
    response = client.post("/v1/score", content=write_stream(pa.table({"age": ["old"]})), headers=ARROW_HEADERS)
    assert (response.status_code, response.json()["error"]) == (
        422,
        "age: found a column of string; a number is expected",
    )
    assert client.post("/v1/score", content=b"", headers={"content-type": "text/plain"}).status_code == 415


def test_compressed_and_corrupted_arrow_streams_are_refused(client: TestClient) -> None:
    sink, table = pa.BufferOutputStream(), pa.table({"age": np.zeros(1_000)})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    response = client.post("/v1/score", content=bytes(sink.getvalue()), headers=ARROW_HEADERS)
    message = "the Arrow stream is compressed; send it uncompressed"
    assert (response.status_code, response.json()["error"]) == (415, message)
    stream = write_stream(pa.table({"age": np.zeros(10), "city": pa.array(["a"] * 10).dictionary_encode()}))
    rng = np.random.default_rng(0)
    for _ in range(300):
        corrupted = bytearray(stream)
        corrupted[rng.integers(len(corrupted))] = rng.integers(256)
        response = client.post("/v1/score", content=bytes(corrupted), headers=ARROW_HEADERS)
        assert response.status_code in (200, 400, 413, 415, 422), response.text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _stream_or_half(columns: dict[str, list[Any]]) -> bytes:
    """Return the Arrow stream of a table of two rows, or its first half, which is malformed."""
    stream = write_stream(pa.table({name: pa.array(values) for name, values in columns.items()}))
    return stream[: len(stream) // (1 + len(columns) % 2)]


def _pairs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, min_size=2, max_size=2)


INTEGERS = st.integers(-(2**63), 2**63 - 1)
ARROW_COLUMNS = st.one_of(
    *map(_pairs, (INTEGERS, st.floats(), st.text(max_size=3), st.booleans(), st.lists(INTEGERS, max_size=3)))
)
NAMES = ("user_id", "history", "age", "city", "tags", "price", "hour", "nobody")
SAMPLES = st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=4)
NUM_EXAMPLES = int(os.environ.get("ASYMDIFFREC_FUZZ", "300"))
"""Number of malformed requests; set ASYMDIFFREC_FUZZ to try more"""
BODIES = st.one_of(
    st.binary(max_size=60),
    JSON_VALUES,
    st.fixed_dictionaries({"samples": JSON_VALUES | st.lists(SAMPLES, max_size=3)}),
    st.fixed_dictionaries(
        {"shared": JSON_VALUES | SAMPLES, "candidates": JSON_VALUES | SAMPLES | st.lists(SAMPLES, max_size=3)}
        | {"top": JSON_VALUES}
    ),
    st.dictionaries(st.sampled_from(NAMES), ARROW_COLUMNS, max_size=4).map(_stream_or_half),
)


@pytest.fixture(scope="module")
def right_request(client: TestClient) -> tuple[Any, Any]:
    """A correct request and its scores."""
    request = {"samples": [{"user_id": 5, "age": 0.5}, {}]}
    return request, client.post("/v1/score", json=request).json()["scores"]


@settings(deadline=None, derandomize=True, max_examples=NUM_EXAMPLES, suppress_health_check=list(HealthCheck))
@given(body=BODIES, content_type=st.sampled_from([JSON, ARROW]), path=st.sampled_from(["/v1/score", "/v1/rank"]))
def test_arbitrary_requests_get_an_error_and_do_not_disturb_others(
    client: TestClient, right_request: tuple[Any, Any], body: Any, content_type: str, path: str
) -> None:
    try:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
    except TypeError:
        content = repr(body).encode()
    response = client.post(path, content=content, headers={"content-type": content_type})
    assert response.status_code in (200, 400, 413, 422)
    if response.status_code != 200:
        assert response.json()["error"]
    elif content_type == JSON and response.json():
        assert "scores" in (response.json() if isinstance(response.json(), dict) else response.json()[0])
    request, scores = right_request
    assert client.post("/v1/score", json=request).json()["scores"] == scores
