"""A load on an HTTP server of this machine: as many requests as it answers, or so many a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Load:
    """What came of it."""

    rate: float
    """Answers a second"""
    seconds: np.ndarray
    """Of each answer; under a given rate from when the request was due, so that a late start counts"""
    failed: int
    """Requests without a right answer of status 200"""
    again: int
    """Requests that were answered only when they were sent once more, for the server or the connection broke"""

    def quantile(self, share: float) -> float:
        """Milliseconds"""
        return 1e3 * float(np.quantile(self.seconds, share))


class Connection:
    """Speaks HTTP/1.1 and no more of it than a server's answers need: the load must cost less than the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None
        self.again = 0

    async def ask(self, request: bytes) -> bytes | None:
        """The body of an answer of status 200. Asks once more where the server or the connection breaks, as
        `serving.client` does."""
        status, body = await self._asked(request)
        if status >= 500:
            status, body = await self._asked(request)
            self.again += status == 200
        return body if status == 200 else None

    async def _asked(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; 503 where the connection breaks."""
        try:
            return await self._told(request)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 503, b""

    async def _told(self, request: bytes) -> tuple[int, bytes]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
        body = await self._reader.readexactly(length)
        if b"connection: close" in lines:  # as a proxy says before its successor takes over
            self.close()
        return int(lines[0].split()[1]), body

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def post(path: str, body: bytes, kind: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def saturate(port: int, request: bytes, seconds: float, connections: int = 16) -> Load:
    """Each connection asks again as soon as it is answered."""
    return _load(port, request, connections, lambda passed: passed if passed < seconds else None)


def steady(
    port: int,
    request: bytes,
    rate: float,
    seconds: float,
    connections: int = 16,
    right: Callable[[bytes], bool] = lambda body: True,
) -> Load:
    """So many requests a second, at times that are drawn, whether the server keeps up or not; answers that are not
    `right` have failed."""
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    due = iter(np.cumsum(gaps).tolist())
    return _load(port, request, connections, lambda passed: next(due, None), right)


def _load(
    port: int,
    request: bytes,
    connections: int,
    due: Callable[[float], float | None],
    right: Callable[[bytes], bool] = lambda body: True,
) -> Load:
    """`due` gives, of the seconds that have passed, those at which the next request is sent; None ends it."""

    async def main() -> Load:
        taken: list[float] = []
        failed, again, start = 0, 0, time.perf_counter()

        async def one() -> None:
            nonlocal failed, again
            connection = Connection(port)
            while (at := due(time.perf_counter() - start)) is not None:
                if (early := start + at - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                body = await connection.ask(request)
                if body is not None and right(body):
                    taken.append(time.perf_counter() - start - at)
                else:
                    failed += 1
            again += connection.again
            connection.close()

        await asyncio.gather(*(one() for _ in range(connections)))
        return Load(len(taken) / (time.perf_counter() - start), np.array(taken), failed, again)

    return asyncio.run(main())
