"""Measure serving while new versions of the model are loaded, or replicas under Ray Serve are killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asymdiffrec.serving.export import load_export
from benchmarks._load import Load, steady
from benchmarks._result import Result
from benchmarks._serve_requests import right_scores
from benchmarks._servers import ROOT, our_server, replicas

KILLS = 10
PROXY_SECONDS = 2
"""Time in seconds to wait until HAProxy uses a new replica. HAProxy does not report when it does"""


def swap_results(folder: Path, request: bytes, count: int) -> Iterator[Result]:
    """Measure the responses while the version of the model is changed `count` times.

    Each change waits until the server has loaded the version of the previous change.
    """
    rounded, link = folder / "rounded", folder / "live"
    command = [sys.executable, "-m", "asymdiffrec", "export", str(folder / "run"), str(rounded), "--tables", "int8"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    versions = {export: load_export(export).manifest.version for export in (folder / "export", rounded)}
    point(link, folder / "export")
    with our_server(folder, model=link) as server, ThreadPoolExecutor(1) as pool:
        load = pool.submit(steady, server.port, request, 100, 4 * count, is_right=right_scores(request, *versions))
        for number in range(count):
            target = list(versions)[(number + 1) % 2]
            point(link, target)
            version = versions[target]
            server.wait_until(lambda version=version: server.version() == version, "the server to load the version")  # type: ignore[misc]
        responses = load.result()
    worst = responses.quantile(1)
    yield Result(f"worst response under {count} swaps", worst, "ms", "limit", 200, "< 200 ms", worst < 200)
    yield first_try_result(responses, f"{count} swaps", "all")


def kill_results(folder: Path, request: bytes) -> Iterator[Result]:
    """Measure the responses while KILLS replicas are killed. Each kill waits until two replicas run."""
    with our_server(folder, "--ray", "--replicas", "2") as server, ThreadPoolExecutor(1) as pool:
        is_right = right_scores(request, folder / "export")
        load = pool.submit(steady, server.port, request, 100, 25 * KILLS, is_right=is_right)
        seconds = []
        for _ in range(KILLS):
            server.wait_until(lambda: len(replicas()) == 2, "two replicas")
            time.sleep(PROXY_SECONDS)
            killed = replicas()[0]
            killed.kill()
            start = time.monotonic()
            server.wait_until(lambda killed=killed: len(set(replicas()) - {killed}) == 2, "a new replica")  # type: ignore[misc]
            seconds.append(time.monotonic() - start)
        responses = load.result()
    slowest, under, right = max(seconds), f"{KILLS} kills", len(responses.seconds)
    yield Result(f"slowest of {KILLS} replicas to come back", slowest, "s", "limit", 20, "< 20 s", slowest < 20)
    yield first_try_result(responses, under)
    sent, failed = right + responses.failed, responses.failed
    yield Result(f"right responses, {under}", right, "", "requests", sent, "all", not failed)


def first_try_result(load: Load, under: str, goal: str = "") -> Result:
    """Return the number of requests with a correct response at the first try."""
    sent = len(load.seconds) + load.failed
    right = len(load.seconds) - load.retried
    return Result(
        f"right responses at once, {under}", right, "", "requests", sent, goal, right == sent if goal else None
    )


def point(link: Path, folder: Path) -> None:
    """Point a symbolic link to another folder, atomically."""
    new = link.with_name("new-link")
    new.symlink_to(folder)
    new.rename(link)
