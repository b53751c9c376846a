"""The `serve` command: it answers requests until a signal ends it, in one process and under Ray Serve."""

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
from asymdiffrec.serving.ray_serve_compat import free_port

ROOT = Path(__file__).parents[3]
WAIT_SECONDS = 240
"""Limit for what takes a second or two on an idle machine"""
SECONDS_AFTER_KILL = 1
"""Time for which requests are sent after a replica was killed"""


def test_server_answers_until_a_signal_ends_it(exported: Path) -> None:
    command = [sys.executable, "-m", "asymdiffrec", "serve", str(exported), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            match = re.fullmatch(r"Version (\w+) of \S+ at (http://127\.0\.0\.1:\d+)\n", line)
            assert match, line
            version, address = match.groups()
            ready = httpx2.get(f"{address}/ready", timeout=WAIT_SECONDS)
            assert ready.json()["version"] == version
            body = {"samples": [{"user_id": 5}, {}]}
            response = httpx2.post(f"{address}/v1/score", json=body, timeout=WAIT_SECONDS)
            assert len(response.json()["scores"]) == 2
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 0
        assert process.stderr.read() == ""


def test_server_warns_about_an_open_address_without_token(
    trained: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASYMDIFFREC_TOKEN", raising=False)
    warning = "warning: 0.0.0.0 accepts connections from other hosts and no token is set; set ASYMDIFFREC_TOKEN"
    assert warning in command("serve", trained, "--host", "0.0.0.0").err
    monkeypatch.setenv("ASYMDIFFREC_TOKEN", "secret")
    assert "warning" not in command("serve", trained, "--host", "0.0.0.0").err


def test_requests_under_ray_survive_a_killed_replica_and_haproxy_ends(exported: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "asymdiffrec", "serve", str(exported), "--port", str(port)]
    with subprocess.Popen(
        [*command, "--ray", "--replicas", "2"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert f"at http://127.0.0.1:{port}\n" in line
            children = psutil.Process(process.pid).children(recursive=True)
            haproxy = [child for child in children if "haproxy" in child.name()]
            assert haproxy
            with Client(f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS, retries=9) as client:
                before = client.score([{"user_id": 5}, {}])
                next(child for child in children if "ServeReplica" in "".join(child.cmdline())).kill()
                end = time.monotonic() + SECONDS_AFTER_KILL
                while time.monotonic() < end:
                    after = client.score([{"user_id": 5}, {}])
                    assert after.version == before.version
                    np.testing.assert_array_equal(after.scores, before.scores)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0
        _, alive = psutil.wait_procs(haproxy, timeout=WAIT_SECONDS)
        assert not alive
        assert process.stderr.readline().startswith("warning: Ray Serve's replicas")


@pytest.mark.parametrize("wrong", ["a run", "a taken port"])
def test_wrong_arguments_end_with_status_2(
    trained: Path, exported: Path, command: Callable[..., Any], wrong: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = command("serve", trained if wrong == "a run" else exported, "--port", port)
    assert outcome.status == 2
    message = {"a run": "is the folder an export?", "a taken port": f"--port {port}: cannot listen on this address"}
    assert message[wrong] in outcome.err
