"""Faults to inject into a training that runs on Ray nodes of this host."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks._ray_training import CHECKPOINT_STEPS, TIMEOUT_SECONDS, Training

FULL_DISK_BYTES = 1_000_000
"""Largest file that can be written while the disk is "full". Checkpoint files are larger, Ray's log files smaller"""
INTERRUPTED = 130
"""Exit status of a training command that got SIGINT or SIGTERM and saved a checkpoint"""

Fault = Callable[[Training], None]


def kill_worker(training: Training) -> None:
    """Kill one worker."""
    training.workers()[-1].kill()


def kill_all_workers(training: Training) -> None:
    """Kill every worker."""
    for worker in training.workers():
        worker.kill()


def hang_worker(training: Training) -> None:
    """Suspend a worker for longer than the timeout of a collective operation."""
    training.workers()[0].suspend()


def kill_node(training: Training) -> None:
    """Kill the node of a worker and start a new node."""
    raylet = training.workers()[-1].parent()
    assert raylet is not None
    node = next(node for node in training.nodes if node.all_processes["raylet"][0].process.pid == raylet.pid)
    training.remove_node(node)
    training.add_node()


def kill_command(training: Training) -> None:
    """Kill the training command, then resume the training."""
    training.process.kill()
    training.resume()


def end_command(training: Training) -> None:
    """Send SIGTERM to the training command, as a host does before it shuts down, then resume the training."""
    training.process.send_signal(signal.SIGTERM)
    if (status := training.process.wait(TIMEOUT_SECONDS)) != INTERRUPTED:
        raise TimeoutError(f"SIGTERM ended the training command with exit status {status}; expected {INTERRUPTED}")
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
    """Make the writing of two checkpoints fail. The training must continue meanwhile."""
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
"""Faults in the order of their injection. After the last fault the order starts again"""


def lose_node(training: Training) -> None:
    """Kill the node of a worker without starting a new node."""
    training.remove_node(training.nodes[-1])


def drain_node(training: Training) -> None:
    """Drain a node, as a cloud provider does before it removes a preemptible host."""
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
"""Changes of the nodes, and the number of workers that train after each change"""
