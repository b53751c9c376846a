"""Faults that are injected into a training on Ray nodes of this machine."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks._ray_training import CHECKPOINT_STEPS, LOST_SECONDS, Training

FULL_DISK_BYTES = 1_000_000
"""Largest file on a full disk: smaller than a checkpoint's files, larger than Ray's own logs"""
INTERRUPTED = 130
"""Exit status of a command that was asked to end and left a checkpoint"""

Fault = Callable[[Training], None]


def kill_worker(training: Training) -> None:
    """Kill one worker."""
    training.workers()[-1].kill()


def kill_all_workers(training: Training) -> None:
    """Kill every worker."""
    for worker in training.workers():
        worker.kill()


def hang_worker(training: Training) -> None:
    """Suspend a worker for longer than a collective operation waits."""
    training.workers()[0].suspend()


def kill_node(training: Training) -> None:
    """Kill the node of a worker; another node takes its place."""
    raylet = training.workers()[-1].parent()
    assert raylet is not None
    node = next(node for node in training.nodes if node.all_processes["raylet"][0].process.pid == raylet.pid)
    training.remove_node(node)
    training.add_node()


def kill_command(training: Training) -> None:
    """Kill the command and resume."""
    training.process.kill()
    training.resume()


def end_command(training: Training) -> None:
    """Ask the command to end, as a host does before it shuts down, and resume."""
    training.process.send_signal(signal.SIGTERM)
    if (status := training.process.wait(LOST_SECONDS)) != INTERRUPTED:
        raise TimeoutError(f"the command ended with status {status}, not with {INTERRUPTED} and a checkpoint")
    training.resume()


def cut_checkpoint(training: Training) -> None:
    """Cut the newest checkpoint in half, then kill a worker."""
    file = training.newest_checkpoint_file()
    os.truncate(file, file.stat().st_size // 2)
    kill_worker(training)


def alter_checkpoint(training: Training) -> None:
    """Change a bit of the newest checkpoint, then kill a worker."""
    with training.newest_checkpoint_file().open("r+b") as file:
        file.seek(4096)
        byte = file.read(1)
        file.seek(4096)
        file.write(bytes([byte[0] ^ 1]))
    kill_worker(training)


def fill_disk(training: Training) -> None:
    """Let writing fail for two checkpoints; the training continues meanwhile."""
    workers, step = training.workers(), training.step()
    for worker in workers:
        worker.rlimit(psutil.RLIMIT_FSIZE, (FULL_DISK_BYTES, resource.RLIM_INFINITY))
    training.reach(step + 2 * CHECKPOINT_STEPS)
    for worker in workers:
        worker.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


FAULTS: tuple[Fault, ...] = (
    kill_worker,
    end_command,
    kill_all_workers,
    kill_node,
    cut_checkpoint,
    kill_command,
    hang_worker,
    alter_checkpoint,
    fill_disk,
)
"""Faults in the order in which they are injected; the cycle repeats"""


def lose_node(training: Training) -> None:
    """Kill the node of a worker; no node takes its place."""
    training.remove_node(training.nodes[-1])


def drain_node(training: Training) -> None:
    """Drain a node, as a cloud does before it takes a host back."""
    reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back")
    options = ("--address", training.cluster.address, "--node-id", training.nodes[-1].node_id)
    ray = Path(sys.executable).with_name("ray")
    drain = [str(ray), "drain-node", *options, *reason, "--deadline-remaining-seconds", "120"]
    subprocess.run(drain, check=True, capture_output=True)


RESIZES: tuple[tuple[Fault, int], ...] = (
    (lose_node, 1),
    (Training.add_node, 2),
    (drain_node, 1),
    (Training.add_node, 2),
)
"""Changes of the nodes, each with the number of workers that train afterwards"""
