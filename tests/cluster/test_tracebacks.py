"""An exception in a worker function is printed once, and its lines have no prefix."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asymdiffrec.cluster import torchrun_workers
from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.context import ClusterContext
from asymdiffrec.cluster.launch import launch


def succeed(arguments: Mapping[str, Any], context: ClusterContext) -> None:
    pass


def fail(arguments: Mapping[str, Any], context: ClusterContext) -> None:
    raise KeyError("no such column")


def run(*arguments: str) -> str:
    """Run this file as a program that fails, and return its standard error."""
    program = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert program.returncode == 1, program.stderr
    return program.stderr


def test_in_one_process_after_other_process_groups(tmp_path: Path) -> None:
    """torch puts its prefix before each line, once for each process group that the process has created."""
    output = run(__file__, str(tmp_path))
    assert output.startswith("Traceback (most recent call last):\n")
    assert output.endswith("KeyError: 'no such column'\n")
    assert output.count("Traceback") == 1
    assert "[rank" not in output


def test_under_torchrun(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    lines = run(*launcher, __file__, str(tmp_path)).splitlines()
    assert "KeyError: 'no such column'" in lines
    assert lines.count("KeyError: 'no such column'") <= 2, "at most once for each worker"
    assert not any(line.startswith("[rank") for line in lines)


if __name__ == "__main__":
    cluster = ClusterConfig(workers=1, gpu=False)
    worker = torchrun_workers.rank_and_world_size()
    if worker is None:
        for _ in range(3):
            launch(succeed, {}, cluster, Path(sys.argv[1]))
    if worker is None or worker[0] == 0:
        launch(fail, {}, cluster, Path(sys.argv[1]))
    else:
        torchrun_workers.follow()
