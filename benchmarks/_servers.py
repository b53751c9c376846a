"""The servers that are measured, each a process of its own that ends with the measurement."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil

from asymdiffrec.serving.ray_serve_compat import free_port

ROOT = Path(__file__).parents[1]


@contextmanager
def served(folder: Path, *options: str, model: Path | None = None, **environment: str) -> Iterator[int]:
    port = free_port()
    served = str(model or folder / "export")
    with process([sys.executable, "-m", "asymdiffrec", "serve", served, "--port", str(port), *options], environment):
        wait(lambda: "version" in ready(port))
        yield port


def ready(port: int) -> dict[str, Any]:
    """What it says, or nothing where it is not ready: a proxy may answer before its replicas do."""
    answer = httpx2.get(f"http://127.0.0.1:{port}/ready")
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
    return found


@contextmanager
def plainly_served(folder: Path) -> Iterator[int]:
    port = free_port()
    module = [sys.executable, "-m", "benchmarks.peers.plain_server"]
    with process([*module, str(folder / "export"), str(port), str(folder / "vocabulary.json")], {}):
        wait(lambda: httpx2.get(f"http://127.0.0.1:{port}/openapi.json").status_code == 200)
        yield port


@contextmanager
def process(command: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    running = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        running.terminate()
        running.wait(60)


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            if until():
                return
        except httpx2.TransportError:
            pass
        if time.monotonic() > end:
            raise TimeoutError("the server does not answer")
        time.sleep(0.2)


def replicas() -> list[psutil.Process]:
    """Those that have loaded their model: they listen."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        if (one.info["cmdline"] or [""])[0].startswith("ray::ServeReplica:asymdiffrec"):
            with contextlib.suppress(psutil.Error):
                if any(connection.status == psutil.CONN_LISTEN for connection in one.net_connections()):
                    found.append(one)
    return found
