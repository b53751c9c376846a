"""A client of `serve`: samples in, scores or rankings out, over one connection that stays open."""

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

from asymdiffrec.serving.protocol import ARROW, JSON, stream_of

Sample = Mapping[str, Any]
"""Values by column; one that is absent or None is missing"""


class ServingError(Exception):
    """The server refused a request: the HTTP status, and what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


@dataclass(frozen=True)
class Scores:
    """Of B samples."""

    version: str
    """Of the model that answered"""
    scores: np.ndarray
    """[B] float32, the probability of a 1"""
    missing: list[list[str]]
    """The fields that each sample lacks"""
    before: np.ndarray | None
    """[B], what the scores would be without the denoiser, where it was asked for and there is one"""


@dataclass(frozen=True)
class Ranking:
    """Candidates, the best first."""

    version: str
    candidates: np.ndarray
    """[K] int64, their places in what was asked"""
    scores: np.ndarray
    """[K] float32"""


class Client:
    """Of the server at an address, such as http://127.0.0.1:8080.

    token: where the server asks for one; timeout: seconds; retries: how often a request is sent again, a while later,
    when the server has too much to do, or it or the connection breaks: scoring twice changes nothing. Every method
    raises ServingError where the server refuses.

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
        self._http.close()

    def score(self, samples: Sequence[Sample] | Mapping[str, Sequence[Any]], *, before: bool = False) -> Scores:
        """Of a list of samples, or of columns of values."""
        told = self._json("/v1/score", {"samples": samples, "before": before})
        plain = np.array(told["before"], np.float32) if "before" in told else None
        return Scores(told["version"], np.array(told["scores"], np.float32), told["missing"], plain)

    def score_table(self, table: pa.Table) -> np.ndarray:
        """[B] float32, of the rows of an Arrow table: faster than JSON for many of them."""
        found = self._arrow("/v1/score", table)
        scores: np.ndarray = found["score"].to_numpy()
        return scores

    def rank(
        self, shared: Sample, candidates: Sequence[Sample] | Mapping[str, Sequence[Any]], top: int | None = None
    ) -> Ranking:
        """Of candidates that have the values of `shared` in common; the `top` best, or all."""
        return self.rank_each([(shared, candidates)], top)[0]

    def rank_each(
        self, queries: Sequence[tuple[Sample, Sequence[Sample] | Mapping[str, Sequence[Any]]]], top: int | None = None
    ) -> list[Ranking]:
        """As `rank`, of several queries in one request."""
        asked = [
            {"shared": shared, "candidates": candidates} | ({} if top is None else {"top": top})
            for shared, candidates in queries
        ]
        return [
            Ranking(one["version"], np.array(one["candidates"], np.int64), np.array(one["scores"], np.float32))
            for one in self._json("/v1/rank", asked)
        ]

    def rank_table(self, shared: Sample, candidates: pa.Table, top: int | None = None) -> Ranking:
        """As `rank`, of candidates in an Arrow table."""
        metadata = {"shared": orjson.dumps(shared)} | ({} if top is None else {"top": str(top)})
        found = self._arrow("/v1/rank", candidates.replace_schema_metadata(metadata))
        version = found.schema.metadata[b"version"].decode()
        return Ranking(version, found["candidate"].to_numpy(), found["score"].to_numpy())

    def model(self) -> dict[str, Any]:
        """`version`, the `columns` of a sample, and the `card` of what is served."""
        found: dict[str, Any] = orjson.loads(self._sent("GET", "/v1/model", None, JSON))
        return found

    def _json(self, path: str, document: Any) -> Any:
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return orjson.loads(self._sent("POST", path, body, JSON))

    def _arrow(self, path: str, table: pa.Table) -> pa.Table:
        return pa.ipc.open_stream(self._sent("POST", path, stream_of(table), ARROW)).read_all()

    def _sent(self, method: str, path: str, body: bytes | None, kind: str) -> bytes:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = self._http.request(method, path, content=body, headers={"content-type": kind})
            except httpx2.TransportError as error:
                if last:
                    raise ServingError(0, f"{self._http.base_url}: {error}") from error
            else:
                if answer.status_code == 200:
                    return answer.content
                if answer.status_code < 500 or last:
                    raise ServingError(answer.status_code, _message(answer))
            time.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _message(answer: httpx2.Response) -> str:
    try:
        return str(orjson.loads(answer.content)["error"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
