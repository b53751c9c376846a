"""A Python client of `asymdiffrec serve`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
import numpy as np
import orjson
import pyarrow as pa

from asymdiffrec.serving.arrow_stream import write_stream
from asymdiffrec.serving.protocol import ARROW, JSON

Sample = Mapping[str, Any]
"""The values of one sample by column name; None has the same meaning as an absent column: the value is missing"""
Samples = Sequence[Sample] | Mapping[str, Sequence[Any]]
"""A list of samples, or one mapping from each column name to the list of its values"""

_FIRST_RETRY_SECONDS = 0.1
"""Waiting time before the first retry; the time doubles with each further retry"""


class ServingError(Exception):
    """Error of a request: the server refused it or could not be reached.

    status: the HTTP status; 0 if the server could not be reached.
    message: the error text of the server, or the connection error.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


@dataclass(frozen=True)
class Scores:
    """The scores of B samples."""

    version: str
    """Version of the model that answered"""
    scores: np.ndarray
    """[B] float32, the probability of label 1"""
    missing: list[list[str]]
    """Names of the missing fields of each sample"""
    without_denoiser: np.ndarray | None
    """[B] float32, the scores without the denoiser; None if they were not requested or the model has no denoiser"""


@dataclass(frozen=True)
class Ranking:
    """A ranking of K candidates, best candidate first."""

    version: str
    """Version of the model that answered"""
    candidates: np.ndarray
    """[K] int64, indices of the candidates in the request"""
    scores: np.ndarray
    """[K] float32, the probability of label 1 for each of these candidates"""


class Client:
    """A client of one server; its connection stays open between requests.

    token: the server's token, if the server needs a token.
    timeout: time limit of a request in seconds.
    retries: maximum number of retries. The client retries if the server answers with status 500 or higher, or if the
    connection breaks. Each wait is longer than the previous wait. A retry is safe, because scoring changes nothing.

    Every method that sends a request raises ServingError if the request fails.

        with Client("http://127.0.0.1:8080") as client:
            client.score([{"user_id": 5, "item_id": 7}]).scores
            client.rank({"user_id": 5}, {"item_id": [7, 8, 9]}, top=2).candidates
    """

    def __init__(self, address: str, *, token: str | None = None, timeout: float = 10.0, retries: int = 3) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(base_url=address, headers=headers, timeout=timeout)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def score(self, samples: Samples, *, without_denoiser: bool = False) -> Scores:
        """Score samples. If `without_denoiser` is true, also return the scores without the denoiser."""
        response = self._post_json("/v1/score", {"samples": samples, "without_denoiser": without_denoiser})
        scores = np.array(response["scores"], np.float32)
        plain_scores = np.array(response["without_denoiser"], np.float32) if "without_denoiser" in response else None
        return Scores(response["version"], scores, response["missing"], plain_scores)

    def score_table(self, table: pa.Table) -> np.ndarray:
        """Return the scores [B] float32 of the rows of an Arrow table; faster than `score` for many rows."""
        response = self._post_arrow("/v1/score", table)
        scores: np.ndarray = response["score"].to_numpy()
        return scores

    def rank(self, shared: Sample, candidates: Samples, top: int | None = None) -> Ranking:
        """Rank candidates that share the values in `shared`.

        Return the `top` best candidates, or all candidates if `top` is None.
        """
        return self.rank_each([(shared, candidates)], top)[0]

    def rank_each(self, queries: Sequence[tuple[Sample, Samples]], top: int | None = None) -> list[Ranking]:
        """Rank the candidates of several queries in one request. A query is a pair (shared, candidates)."""
        documents = [
            {"shared": shared, "candidates": candidates} | ({} if top is None else {"top": top})
            for shared, candidates in queries
        ]
        return [
            Ranking(
                ranking["version"],
                np.array(ranking["candidates"], np.int64),
                np.array(ranking["scores"], np.float32),
            )
            for ranking in self._post_json("/v1/rank", documents)
        ]

    def rank_table(self, shared: Sample, candidates: pa.Table, top: int | None = None) -> Ranking:
        """Rank candidates in an Arrow table, see `rank`."""
        metadata = {"shared": orjson.dumps(shared)} | ({} if top is None else {"top": str(top)})
        response = self._post_arrow("/v1/rank", candidates.replace_schema_metadata(metadata))
        version = response.schema.metadata[b"version"].decode()
        return Ranking(version, response["candidate"].to_numpy(), response["score"].to_numpy())

    def model(self) -> dict[str, Any]:
        """Return the `version` of the model, the `columns` of a sample, and the `card` of the export."""
        document: dict[str, Any] = orjson.loads(self._send("GET", "/v1/model", None, JSON))
        return document

    def _post_json(self, path: str, document: Any) -> Any:
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return orjson.loads(self._send("POST", path, body, JSON))

    def _post_arrow(self, path: str, table: pa.Table) -> pa.Table:
        return pa.ipc.open_stream(self._send("POST", path, write_stream(table), ARROW)).read_all()

    def _send(self, method: str, path: str, body: bytes | None, content_type: str) -> bytes:
        """Send a request, with retries, and return the response body.

        httpx2 can retry only failed attempts to connect. This method also retries after a broken connection or an error
        status.
        """
        for attempt in range(self._retries + 1):
            is_last = attempt == self._retries
            try:
                response = self._http.request(method, path, content=body, headers={"content-type": content_type})
            except httpx2.TransportError as error:
                if is_last:
                    raise ServingError(0, f"{self._http.base_url}: {error}") from error
            else:
                if response.status_code == 200:
                    return response.content
                if response.status_code < 500 or is_last:
                    raise ServingError(response.status_code, _error_message(response))
            time.sleep(_FIRST_RETRY_SECONDS * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _error_message(response: httpx2.Response) -> str:
    try:
        return str(orjson.loads(response.content)["error"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
