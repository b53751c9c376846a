"""The requests of the serving benchmark, and the correct scores for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from asymdiffrec.datasets.decoding.ids import decode_ids
from asymdiffrec.serving.arrow_stream import write_stream
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import load_export
from asymdiffrec.serving.protocol import ARROW, JSON
from benchmarks._load import post
from benchmarks._servers import TIMEOUT_SECONDS

Requests = dict[str, bytes]
"""{name, for example "100 candidates, Arrow": HTTP request}"""


def requests_for(engine: Engine, table: pa.Table) -> tuple[Requests, Requests]:
    """Return the requests for our server and for the plain server.

    Both have the same samples, in the format that suits each server best.
    """
    samples = table.to_pylist()
    schema = engine.schema
    shared = [schema.column(name) for name, field in schema.fields.items() if field.group in ("user", "context")]
    common = {name: samples[0][name] for name in shared}
    candidates = table.drop_columns(shared)
    hundred = [common | candidate for candidate in candidates.to_pylist()]
    query = orjson.dumps({"shared": common, "candidates": candidates.to_pydict()})
    stream = write_stream(candidates.replace_schema_metadata({"shared": orjson.dumps(common)}))
    sample = orjson.dumps({"samples": samples[:1]})
    ours = {
        "one sample": post("/v1/score", sample, JSON),
        "100 candidates": post("/v1/rank", query, JSON),
        "100 candidates, Arrow": post("/v1/rank", stream, ARROW),
        "100 samples": post("/v1/score", orjson.dumps({"samples": hundred, "missing": False}), JSON),
    }
    whole = post("/score", orjson.dumps({"samples": hundred}), JSON)
    plain = dict.fromkeys(ours, whole) | {"one sample": post("/score", sample, JSON)}
    return ours, plain


def vocabulary(engine: Engine, data: Path) -> dict[str, dict[str, int]]:
    """Return {column: {string: table row}} for the strings of the training split."""
    schema, rows_by_column = engine.schema, {}
    for name, field in schema.sparse.items():
        if field.values == "string":
            column = schema.column(name)
            values = pa.array(pq.read_table(data / "train", columns=[column])[column].drop_null().unique().to_pylist())
            rows = decode_ids(values, schema.table_of(name), None, column)
            rows_by_column[column] = dict(zip(values.to_pylist(), rows.tolist(), strict=True))
    return rows_by_column


def require_same_scores(our_port: int, ours: Requests, plain_port: int, plain: Requests) -> None:
    """Raise AssertionError unless both servers return the same scores for 100 samples.

    Our server must also return these scores for the samples as 100 candidates.
    """

    def ask(port: int, path: str, request: bytes) -> Any:
        body, headers = request.partition(b"\r\n\r\n")[2], {"content-type": JSON}
        url = f"http://127.0.0.1:{port}{path}"
        return httpx2.post(url, content=body, headers=headers, timeout=TIMEOUT_SECONDS).json()

    expected = np.array(ask(plain_port, "/score", plain["100 samples"])["scores"])
    scores = ask(our_port, "/v1/score", ours["100 samples"])["scores"]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    ranking = ask(our_port, "/v1/rank", ours["100 candidates"])
    np.testing.assert_allclose(ranking["scores"], expected[ranking["candidates"]], atol=1e-5)


def right_scores(request: bytes, *exports: Path) -> Callable[[bytes], bool]:
    """Return a function that checks the scores of a response.

    Correct scores are the scores of the export whose version the response names.
    """
    samples = orjson.loads(request.partition(b"\r\n\r\n")[2])["samples"]
    engines = [Engine(load_export(folder)) for folder in exports]
    expected = {engine.version: engine.score(engine.request_schema.table(samples)).scores for engine in engines}

    def is_right(body: bytes) -> bool:
        response = orjson.loads(body)
        return np.allclose(response["scores"], expected[response["version"]], atol=1e-5)

    return is_right
