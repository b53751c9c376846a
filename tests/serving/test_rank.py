"""Rankings agree with the scores of complete requests, for a single query and for several queries."""

from __future__ import annotations

import numpy as np
import orjson
import pyarrow as pa
from starlette.testclient import TestClient

from asymdiffrec.serving.arrow_stream import write_stream
from asymdiffrec.serving.protocol import ARROW

USER_COLUMNS = ("user_id", "history", "age", "gender", "income", "city")


def test_candidates_rank_as_whole_samples_score(client: TestClient, samples: pa.Table) -> None:
    samples = samples.slice(0, 60)
    columns = client.get("/v1/model").json()["columns"]
    shared = {name: samples[name][0].as_py() for name in USER_COLUMNS}
    candidates = samples.select([name for name in columns if name not in USER_COLUMNS])
    whole = [shared | candidate for candidate in candidates.to_pylist()]
    scores = np.array(client.post("/v1/score", json={"samples": whole}).json()["scores"])
    best = np.argsort(-scores, kind="stable")

    ranking = client.post("/v1/rank", json={"shared": shared, "candidates": candidates.to_pylist()}).json()
    np.testing.assert_allclose(ranking["scores"], np.sort(scores)[::-1], atol=1e-6)
    np.testing.assert_allclose(scores[ranking["candidates"]], ranking["scores"], atol=1e-6)
    query = {"shared": shared, "candidates": candidates.to_pydict(), "top": 3}
    by_column = client.post("/v1/rank", json=query).json()
    assert by_column["candidates"] == best[:3].tolist()
    queries = [{"shared": shared, "candidates": candidates.to_pydict()}, {"candidates": []}]
    first, second = client.post("/v1/rank", json=queries).json()
    assert (first, second["scores"]) == (ranking, [])

    table = candidates.replace_schema_metadata({"shared": orjson.dumps(shared), "top": "3"})
    response = client.post("/v1/rank", content=write_stream(table), headers={"content-type": ARROW})
    ranked = pa.ipc.open_stream(response.content).read_all()
    assert ranked["candidate"].to_pylist() == best[:3].tolist()
    np.testing.assert_allclose(ranked["score"].to_numpy(), by_column["scores"], atol=1e-6)


def test_queries_in_one_request_rank_as_they_do_alone(client: TestClient) -> None:
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
    for query, ranking in zip(queries, together, strict=True):
        alone = client.post("/v1/rank", json=query).json()
        assert ranking["candidates"] == alone["candidates"]
        np.testing.assert_allclose(ranking["scores"], alone["scores"], atol=1e-6)
    assert len({ranking["scores"][0] for ranking in together if ranking["scores"]}) == 5
