"""`serve` as its user runs it: it answers, and ends when it is told to."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from asymdiffrec.serving.client import Client
from asymdiffrec.serving.ray_serve import free_port


def test_it_answers_until_it_is_told_to_end(exported: Path) -> None:
    command = [sys.executable, "-m", "asymdiffrec", "serve", str(exported), "--port", "0"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.fullmatch(r"Version (\w+) of \S+ at (http://127\.0\.0\.1:\d+)\n", process.stderr.readline())
        assert found
        version, address = found.groups()
        assert httpx2.get(f"{address}/ready").json()["version"] == version
        answer = httpx2.post(f"{address}/v1/score", json={"samples": [{"user_id": 5}, {}]}).json()
        assert len(answer["scores"]) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_under_ray_it_answers_though_a_replica_dies_and_leaves_nothing(exported: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "asymdiffrec", "serve", str(exported), "--port", str(port)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [*command, "--ray", "--replicas", "2"], cwd=root, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            assert f"at http://127.0.0.1:{port}\n" in process.stderr.readline()
            started = psutil.Process(process.pid).children(recursive=True)
            assert any("haproxy" in one.name() for one in started)
            with Client(f"http://127.0.0.1:{port}") as client:
                before = client.score([{"user_id": 5}, {}])
                next(one for one in started if "ServeReplica" in "".join(one.cmdline())).kill()
                end = time.monotonic() + 1
                while time.monotonic() < end:
                    now = client.score([{"user_id": 5}, {}])
                    assert now.version == before.version
                    np.testing.assert_array_equal(now.scores, before.scores)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not [one for one in psutil.wait_procs(started, timeout=10)[1] if one.name() == "haproxy"]
        assert process.stderr.readline().startswith("Ray Serve's replicas")


@pytest.mark.parametrize("what", ["a run", "a taken port"])
def test_what_cannot_be_served(trained: Path, exported: Path, command: Callable[..., Any], what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = command("serve", trained if what == "a run" else exported, "--port", port)
    assert outcome.status == 2
    told = {"a run": "is it the folder of an export?", "a taken port": f"--port {port}: cannot listen there"}
    assert told[what] in outcome.err
