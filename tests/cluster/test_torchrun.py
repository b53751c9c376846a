"""Workers that torchrun started: rank 0 leads, all ranks work, and torchrun restarts them after a worker died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from asymdiffrec.cluster import torchrun_workers as torchrun_workers
from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.context import ClusterContext
from asymdiffrec.cluster.launch import launch


def sum_ranks(arguments: Mapping[str, Any], context: ClusterContext) -> None:
    rank = dist.get_rank()
    if rank == arguments["dying_rank"] and torchrun_workers.restart_count() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    report = {
        "total": total.item(),
        "hosts": list(map(list, context.ranks_by_host)),
        "restarts": torchrun_workers.restart_count(),
    }
    Path(arguments["folder"], f"rank{rank}.json").write_text(json.dumps(report))


def test_torchrun_restarts_workers(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    launcher_process = subprocess.run(
        [sys.executable, *launcher, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert launcher_process.returncode == 0, launcher_process.stderr
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert reports == [{"total": 3.0, "hosts": [[0, 1]], "restarts": 1}] * 2


if __name__ == "__main__":
    worker = torchrun_workers.rank_and_world_size()
    assert worker is not None
    if worker[0] == 0:
        launch(
            sum_ranks, {"folder": sys.argv[1], "dying_rank": 1}, ClusterConfig(workers=2, gpu=False), Path(sys.argv[1])
        )
    else:
        torchrun_workers.follow()
