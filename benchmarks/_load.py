"""Send requests to an HTTP server on this host: as fast as it answers, or at a given rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Load:
    """Counts and latencies of the responses to a series of requests."""

    rate: float
    """Correct responses per second"""
    seconds: np.ndarray
    """Latency of each correct response in seconds. It starts when the request was due, so a late start counts"""
    failed: int
    """Number of requests without a correct response of status 200"""
    retried: int
    """Number of requests that were sent twice, because the first try failed, and got status 200 at the second try"""

    def quantile(self, share: float) -> float:
        """Return a quantile of the latencies in milliseconds."""
        return 1e3 * float(np.quantile(self.seconds, share))


class Connection:
    """A minimal HTTP/1.1 client. It must use less processor time than the server under test."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None
        self.retried = 0

    async def send(self, request: bytes) -> bytes | None:
        """Return the body of the response, or None if its status is not 200.

        Like `serving.client`, send the request again if the server or the connection fails.
        """
        status, body = await self._try(request)
        if status >= 500:
            status, body = await self._try(request)
            self.retried += status == 200
        return body if status == 200 else None

    async def _try(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body; status 503 if the connection fails."""
        try:
            return await self._exchange(request)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 503, b""

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
        body = await self._reader.readexactly(length)
        if b"connection: close" in lines:  # a proxy sends it before it is replaced
            self.close()
        return int(lines[0].split()[1]), body

    def close(self) -> None:
        """Close the connection if it is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def post(path: str, body: bytes, content_type: str) -> bytes:
    """Return a POST request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def saturate(port: int, request: bytes, seconds: float, connections: int = 16) -> Load:
    """Send requests for some seconds. Each connection sends its next request as soon as a response arrives.

    Each connection sends at least one request, even on a slow host.
    """
    first: Iterator[float] = iter([0.0] * connections)
    return _load(port, request, connections, lambda passed: next(first, passed if passed < seconds else None))


def steady(
    port: int,
    request: bytes,
    rate: float,
    seconds: float,
    connections: int = 16,
    is_right: Callable[[bytes], bool] = lambda body: True,
) -> Load:
    """Send `rate` requests per second at random times (a Poisson process), at least one request.

    The times do not depend on the speed of the server. A request fails if `is_right` is false for its response body.
    """
    gaps = np.random.default_rng(0).exponential(1 / rate, max(1, int(rate * seconds)))
    due = iter(np.cumsum(gaps).tolist())
    return _load(port, request, connections, lambda passed: next(due, None), is_right)


def _load(
    port: int,
    request: bytes,
    connections: int,
    due: Callable[[float], float | None],
    is_right: Callable[[bytes], bool] = lambda body: True,
) -> Load:
    """Send requests at the times that `due(seconds since the start)` returns, until it returns None."""

    async def main() -> Load:
        latencies: list[float] = []
        failed, retried, start = 0, 0, time.perf_counter()

        async def send_all() -> None:
            nonlocal failed, retried
            connection = Connection(port)
            while (at := due(time.perf_counter() - start)) is not None:
                if (early := start + at - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                body = await connection.send(request)
                if body is not None and is_right(body):
                    latencies.append(time.perf_counter() - start - at)
                else:
                    failed += 1
            retried += connection.retried
            connection.close()

        await asyncio.gather(*(send_all() for _ in range(connections)))
        return Load(len(latencies) / (time.perf_counter() - start), np.array(latencies), failed, retried)

    return asyncio.run(main())
