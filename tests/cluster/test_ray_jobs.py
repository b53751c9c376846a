"""Ray jobs on a cluster of three nodes on loopback that requires a token."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from asymdiffrec.cluster.ray_jobs import RayJobs, exit_status
from tests.cluster.three_nodes import METRICS_PORT, NODES

ROOT = Path(__file__).parents[2]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
WAIT_SECONDS = 600
"""Limit of every wait; long, so that no test depends on the speed of the machine"""
RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the job server of a cluster with four CPUs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    scripts = Path(sys.executable).parent
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "PATH": f"{scripts}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.three_nodes", str(port)],
        cwd=ROOT,
        env=os.environ | settings | TOKEN,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        assert cluster.stdout is not None
        yield json.loads(cluster.stdout.readline())["url"]
        cluster.communicate(timeout=WAIT_SECONDS)


@pytest.fixture
def run(script: Path) -> RunCommand:
    """The installed command with the token of the cluster, or with another token."""

    def command(*arguments: object, token: str = TOKEN["RAY_AUTH_TOKEN"]) -> subprocess.CompletedProcess[str]:
        environment = os.environ | TOKEN | {"RAY_AUTH_TOKEN": token}
        return subprocess.run([script, *map(str, arguments)], env=environment, capture_output=True, text=True)

    return command


def wait_for_gauge(gauge: str) -> set[str]:
    """Wait until the agents of the nodes show `gauge`, and return all gauges of the training."""
    names: set[str] = set()
    for _ in range(WAIT_SECONDS):
        for node in range(NODES):
            with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT + node}/metrics") as response:
                names |= set(re.findall(r"^ray_asymdiffrec_(\w+){.*rank=\"0\"", response.read().decode(), re.MULTILINE))
        if gauge in names:
            return names
        time.sleep(1)
    raise TimeoutError(f"{gauge} is not among {names} after {WAIT_SECONDS} s")


def result(run: Path) -> dict[str, Any]:
    """Return the outcome of a run."""
    return json.loads((run / "result.json").read_text())


def test_job_with_four_workers_on_three_nodes_ends_as_a_local_run(
    url: str, run: RunCommand, clicks: Path, trained: Path, tmp_path: Path, small: list[str]
) -> None:
    folder = tmp_path / "run"
    outcome = run("submit", clicks / "job.yaml", "--run", folder, "--address", url, "--workers", 4, *small)
    assert outcome.returncode == 0, outcome.stderr
    assert "training begins, 4 workers on 3 hosts" in outcome.stderr
    assert "step 36/36" in outcome.stderr
    remote, local = result(folder), result(trained)
    assert remote["outcome"] == "finished"
    assert remote["best_value"] == pytest.approx(local["best_value"], abs=1e-3)


def test_job_is_described_by_its_id_and_stopped_with_a_checkpoint(
    url: str, run: RunCommand, clicks: Path, tmp_path: Path, small: list[str]
) -> None:
    folder, long = tmp_path / "run", ["--set", "train.epochs=1000", "--set", "train.validation.patience=1000"]
    outcome = run("submit", clicks / "job.yaml", "--run", folder, "--address", url, *small, *long, "--detach", "--json")
    ray_job_id = json.loads(outcome.stdout)["ray_job_id"]
    while not (folder / "metrics.jsonl").exists():
        assert json.loads(run("job", "status", ray_job_id, "--address", url, "--json").stdout)["exit_status"] is None
        time.sleep(1)
    assert "training begins, 1 worker" in run("job", "logs", ray_job_id, "--address", url).stdout
    assert {"loss", "samples_per_second", "data_wait", "peer_wait", "memory"} <= wait_for_gauge("loss")
    stopped = run("job", "stop", ray_job_id, "--address", url, "--seconds", WAIT_SECONDS)
    assert stopped.returncode == 0, stopped.stderr
    assert f"{ray_job_id}: failed, exit status 130" in stopped.stderr
    assert result(folder)["outcome"] == "interrupted"
    assert (folder / "checkpoints" / f"step-{result(folder)['step']}" / "manifest.json").exists()


def test_missing_resources_are_named(url: str, run: RunCommand, clicks: Path, tmp_path: Path) -> None:
    outcome = run("submit", clicks / "job.yaml", "--run", tmp_path / "run", "--address", url, "--workers", 16)
    assert outcome.returncode == 2, outcome.stderr
    assert "16 workers with 1 CPU each need 16 CPU; the Ray cluster has 4" in outcome.stderr


class EndsEarly:
    """A job client whose log stream is closed before the last line."""

    def __init__(self, address: str) -> None: ...

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "first\n"
        yield "second\n"

    def get_job_logs(self, job: str) -> str:
        return "first\nsecond\nlast\n"

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=2)


def test_last_lines_of_a_log_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymdiffrec.cluster.ray_jobs.JobSubmissionClient", EndsEarly)
    shown: list[str] = []
    details = RayJobs("http://127.0.0.1:1").follow("job", shown.append)
    assert "".join(shown) == "first\nsecond\nlast\n"
    assert exit_status(details) == 2


def test_errors_are_one_line(url: str, run: RunCommand, clicks: Path, tmp_path: Path) -> None:
    for arguments, token, message in (
        (["--run", tmp_path / "run", "--address", url], "f" * 32, "the cluster refuses the token"),
        (["--run", tmp_path / "run", "--address", "http://127.0.0.1:9"], "f" * 32, "no Ray cluster answers"),
        (["--run", "runs/relative", "--address", url], "f" * 32, "--run runs/relative: is a relative path"),
    ):
        outcome = run("submit", clicks / "job.yaml", *arguments, token=token)
        assert (outcome.returncode, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
        assert message in outcome.stderr
    outcome = run("job", "status", "raysubmit_nothing", "--address", url)
    assert (outcome.returncode, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
    assert "raysubmit_nothing" in outcome.stderr
