"""Workers that torchrun has started: the first one leads, all work, and they come back after one has died."""

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


def add_up(arguments: Mapping[str, Any], context: ClusterContext) -> None:
    rank = dist.get_rank()
    if rank == arguments["dies"] and torchrun_workers.restart_count() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    found = {
        "total": total.item(),
        "hosts": list(map(list, context.ranks_by_host)),
        "restarts": torchrun_workers.restart_count(),
    }
    Path(arguments["folder"], f"rank{rank}.json").write_text(json.dumps(found))


def test_workers_are_started_again_by_torchrun(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    ended = subprocess.run(
        [sys.executable, *launcher, __file__, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert found == [{"total": 3.0, "hosts": [[0, 1]], "restarts": 1}] * 2


if __name__ == "__main__":
    started = torchrun_workers.rank_and_world_size()
    assert started is not None
    if started[0] == 0:
        launch(add_up, {"folder": sys.argv[1], "dies": 1}, ClusterConfig(workers=2, gpu=False), Path(sys.argv[1]))
    else:
        torchrun_workers.follow()
