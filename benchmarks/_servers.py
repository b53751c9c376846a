"""The servers under test. Each one is a subprocess, which ends with the measurement."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

from asymdiffrec.serving.ray_serve_compat import free_port

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 1800.0
"""Longest time in seconds to wait for a server. On a busy host it takes minutes to start."""
SHOWN_LINES = 20
"""Number of lines in an error message, from the end of the server's standard error"""


class ServerError(Exception):
    """A server ended early or hangs. The message has the end of the server's standard error."""


class Server:
    """A server process on a port of this host."""

    def __init__(self, command: list[str], port: int, environment: Mapping[str, str]) -> None:
        self.port = port
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by `close`
        variables = {**os.environ, **environment}
        self._process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=self._log)

    def get(self, path: str) -> httpx2.Response | None:
        """Return the response to a GET request, or None if the server does not answer yet."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}{path}", timeout=TIMEOUT_SECONDS)
        except httpx2.TransportError:
            return None

    def version(self) -> str | None:
        """Return the version of the model that the server has loaded, or None while the server is not ready.

        Before its replicas are ready, a proxy answers with a status other than 200.
        """
        response = self.get("/ready")
        document: dict[str, Any] = response.json() if response is not None and _is_ok(response) else {}
        return document.get("version")

    def wait_until(self, condition: Callable[[], bool], event: str) -> None:
        """Wait until a condition is true. Raises ServerError if the server ends first, or after TIMEOUT_SECONDS.

        event: a noun phrase for the message, such as "two replicas".
        """
        start = time.monotonic()
        while not condition():
            if (status := self._process.poll()) is not None:
                raise ServerError(f"waiting for {event}: the server ended with exit status {status}\n{self._errors()}")
            if time.monotonic() - start > TIMEOUT_SECONDS:
                limit = f"no success in {TIMEOUT_SECONDS:g} s; the server still runs"
                raise ServerError(f"waiting for {event}: {limit}\n{self._errors()}")
            time.sleep(0.2)

    def _errors(self) -> str:
        self._log.seek(0)
        return "".join(self._log.readlines()[-SHOWN_LINES:])

    def close(self) -> None:
        """Terminate the server and wait until its process has ended."""
        self._process.terminate()
        self._process.wait(TIMEOUT_SECONDS)
        self._log.close()


@contextmanager
def our_server(folder: Path, *options: str, model: Path | None = None, **environment: str) -> Iterator[Server]:
    """Run `asymdiffrec serve` with options and environment variables.

    The model is `model`, by default folder/export.
    """
    port = free_port()
    command = [sys.executable, "-m", "asymdiffrec", "serve", str(model or folder / "export"), "--port", str(port)]
    with _running(Server([*command, *options], port, environment)) as server:
        server.wait_until(lambda: server.version() is not None, "the server to become ready")
        yield server


@contextmanager
def plain_server(folder: Path) -> Iterator[Server]:
    """Run `peers/plain_server.py` with the model folder/export."""
    port = free_port()
    module = [sys.executable, "-m", "benchmarks.peers.plain_server"]
    command = [*module, str(folder / "export"), str(port), str(folder / "vocabulary.json")]
    with _running(Server(command, port, {})) as server:
        server.wait_until(lambda: _is_ok(server.get("/openapi.json")), "the first response of the server")
        yield server


def _is_ok(response: httpx2.Response | None) -> bool:
    return response is not None and response.status_code == 200


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        yield server
    finally:
        server.close()


def replicas() -> list[psutil.Process]:
    """Return the processes of the Ray Serve replicas that have loaded their model. Only these listen on a port."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::ServeReplica:asymdiffrec"):
            with contextlib.suppress(psutil.Error):
                if any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections()):
                    processes.append(process)
    return processes
