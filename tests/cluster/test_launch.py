"""Workers: in this process, and under Ray Train."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.context import ClusterContext
from asymdiffrec.cluster.errors import ClusterError, WorkerError
from asymdiffrec.cluster.launch import launch


def test_one_worker_runs_in_this_process(tmp_path: Path) -> None:
    calls = []

    def work(arguments: Mapping[str, Any], context: ClusterContext) -> None:
        total = torch.ones(1)
        dist.all_reduce(total)
        calls.append((os.getpid(), dist.get_world_size(), total.item(), arguments["name"]))

    launch(work, {"name": "alone"}, ClusterConfig(), tmp_path)
    assert calls == [(os.getpid(), 1, 1.0, "alone")]
    assert not dist.is_initialized()


def test_process_group_ends_if_the_work_fails(tmp_path: Path) -> None:
    def work(arguments: Mapping[str, Any], context: ClusterContext) -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        launch(work, {}, ClusterConfig(), tmp_path)
    assert not dist.is_initialized()


@pytest.mark.usefixtures("ray_cluster")
def test_workers_under_ray_share_a_process_group_and_are_restarted(tmp_path: Path) -> None:
    def work(arguments: Mapping[str, Any], context: ClusterContext) -> None:
        died = Path(arguments["folder"], "died")
        if dist.get_rank() == 1 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        total = torch.tensor([1.0 + dist.get_rank()])
        dist.all_reduce(total)
        report = f"{os.environ['LOCAL_RANK']} {os.environ['LOCAL_WORLD_SIZE']} {total.item()}"
        (Path(arguments["folder"]) / str(dist.get_rank())).write_text(report)

    lines: list[str] = []
    launch(work, {"folder": str(tmp_path)}, ClusterConfig(workers=2), tmp_path / "storage", on_restart=lines.append)
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["0 2 3.0", "1 2 3.0"]
    assert lines == ["worker 1 died; the workers are started again"]


@pytest.mark.usefixtures("ray_cluster")
def test_failure_of_a_worker_is_one_line_with_cause_and_traceback(tmp_path: Path) -> None:
    def work(arguments: Mapping[str, Any], context: ClusterContext) -> None:
        if dist.get_rank() == 1:
            raise ValueError("row group 7 is broken")
        dist.barrier()

    with pytest.raises(WorkerError, match="row group 7 is broken") as error:
        launch(work, {}, ClusterConfig(workers=2, timeout_seconds=300, max_failures=0), tmp_path / "storage")
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, ValueError)
    assert error.value.traceback is not None
    assert 'raise ValueError("row group 7 is broken")' in error.value.traceback


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_the_cluster_can_never_run_are_refused(tmp_path: Path) -> None:
    message = "2 workers with 1 GPU each need 2 GPU; the Ray cluster has 0"
    with pytest.raises(ClusterError, match=message):
        launch(lambda arguments, context: None, {}, ClusterConfig(workers=2, gpu=True), tmp_path / "storage")
