"""A training in a subprocess, on Ray nodes of this host. Faults can be injected into it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from asymdiffrec.cluster.launch import stay_on_loopback
from asymdiffrec.json_lines import read_json_lines

BATCH = 512
CHECKPOINT_STEPS = 25
"""Steps from one checkpoint to the next, and from a recovery to the next fault"""
COLLECTIVE_TIMEOUT_SECONDS = 15
"""Timeout of a collective operation, in seconds"""
TIMEOUT_SECONDS = 1800.0
"""Time in seconds to wait for an event of a training. After it the training counts as lost"""


class Training:
    """A training in a subprocess, on a Ray cluster whose nodes are also subprocesses of the benchmark."""

    def __init__(self, folder: Path, data: Path, steps: int, nodes: int, workers: str, **overrides: object) -> None:
        """Start a cluster with `nodes` nodes of one CPU each, and a training on `workers` workers."""
        stay_on_loopback()
        from ray.cluster_utils import Cluster  # after stay_on_loopback: the import of Ray reads the addresses to use

        folder.mkdir()
        self.run = folder / "run"
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()
        values: dict[str, Any] = {
            "cluster.workers": workers,
            "cluster.address": self.cluster.address,
            "cluster.max_failures": 1000,
            "cluster.timeout_seconds": COLLECTIVE_TIMEOUT_SECONDS,
            **common_overrides(steps),
            **overrides,
        }
        self.command = train_command(data, self.run, values)
        self.start()

    def add_node(self) -> None:
        """Start a node."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def remove_node(self, node: Any) -> None:
        """Kill a node with all its processes."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def start(self, *options: str) -> None:
        """Start the training command with further options."""
        with (self.run.parent / "log").open("a") as log:
            self.process = subprocess.Popen([*self.command, *options], stdout=log, stderr=log)

    def step(self) -> int:
        """Return the last step in metrics.jsonl, or 0 before the first step."""
        return max((record["step"] for record in records(self.run)), default=0)

    def _wait(self, condition: Callable[[], bool], error: str) -> None:
        """Wait until a condition is true, or the command ends with exit status 0.

        Raises TimeoutError with the message `error` if the command fails, or after TIMEOUT_SECONDS.
        """
        start = time.monotonic()
        while not condition():
            status = self.process.poll()
            if status == 0:
                return
            if status is not None or time.monotonic() - start > TIMEOUT_SECONDS:
                log = (self.run.parent / "log").read_text(errors="replace").splitlines()
                ending = "is still running" if status is None else f"ended with exit status {status}"
                raise TimeoutError(f"{error}; the command {ending}; end of its output:\n" + "\n".join(log[-20:]))
            time.sleep(0.1)

    def reach(self, step: int) -> None:
        """Wait until metrics.jsonl has the step, or the training has finished.

        Raises TimeoutError if the training is lost.
        """
        self._wait(lambda: self.step() >= step, f"the training does not reach step {step}")

    def log_file(self) -> int:
        """Return the inode of metrics.jsonl.

        It changes when a training restarts from a checkpoint and writes a new file.
        """
        return (self.run / "metrics.jsonl").stat().st_ino

    def recover(self, log_file: int) -> None:
        """Wait until the training has made a step after a restart.

        log_file: result of `log_file()` before the restart. Raises TimeoutError if the training is lost.
        """

        def has_step() -> bool:
            return self.log_file() != log_file and "loss" in (records(self.run) or [{}])[-1]

        self._wait(has_step, "the training does not restart")

    def resize(self, workers: int) -> None:
        """Wait until the training has made a step with `workers` workers.

        Raises TimeoutError if the training is lost.
        """

        def has_step() -> bool:
            log = records(self.run)
            starts = [record for record in log if "workers" in record]
            return bool(starts) and starts[-1]["workers"] == workers and "loss" in log[-1]

        self._wait(has_step, f"the training does not make a step with {workers} workers")

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes on the nodes of this cluster, by process id."""
        processes = [
            process
            for process in psutil.Process().children(recursive=True)
            if process.name().startswith("ray::RayTrainWo") and process.status() != psutil.STATUS_ZOMBIE
        ]
        return sorted(processes, key=lambda process: process.pid)

    def newest_checkpoint_file(self) -> Path:
        """Return the largest file of the newest checkpoint."""
        folders = [path.parent for path in (self.run / "checkpoints").glob("step-*/manifest.json")]
        folder = max(folders, key=lambda path: int(path.name.removeprefix("step-")))
        return max(folder.glob("*.distcp"), key=lambda file: file.stat().st_size)

    def resume(self) -> None:
        """Wait until the command has ended, then start it again with --resume."""
        self.process.wait()
        self.start("--resume")

    def close(self) -> None:
        """Kill the command and the cluster."""
        self.process.kill()
        self.process.wait()
        self.cluster.shutdown()


def common_overrides(steps: int) -> dict[str, Any]:
    """Return the overrides for runs with and without faults."""
    return {
        "train.batch_size": BATCH,
        "train.log_every": 1,
        "train.steps": steps,
        "train.epochs": 10_000,
        "train.validation.every": steps,
        "train.checkpoints.steps": CHECKPOINT_STEPS,
        "train.checkpoints.keep": 3,
        "tables.embedding_dim": 64,
    }


def train_command(data: Path, run: Path, overrides: Mapping[str, Any]) -> list[str]:
    """Return the command line of a training with overrides."""
    options = [part for path, value in overrides.items() for part in ("--set", f"{path}={value}")]
    script = Path(sys.executable).with_name("asymdiffrec")
    return [str(script), "train", str(data / "job.yaml"), "--run", str(run), *options]


def train_undisturbed(data: Path, run: Path, overrides: Mapping[str, Any]) -> None:
    """Train without faults, and wait until the training has finished."""
    subprocess.run(train_command(data, run, overrides), check=True, stderr=subprocess.DEVNULL)


def records(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl."""
    return read_json_lines(run / "metrics.jsonl")


def steps_of(run: Path) -> dict[int, list[tuple[str, float]]]:
    """Return {step: [(row checksum, loss), ...]} from metrics.jsonl. A step that was repeated has several entries."""
    steps: dict[int, list[tuple[str, float]]] = {}
    for record in records(run):
        if "loss" in record:
            steps.setdefault(record["step"], []).append((record["row_checksum"], record["loss"]))
    return steps
