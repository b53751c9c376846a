"""Run one function on every worker: in this process for one worker, under Ray Train for more. Knows no model."""

from __future__ import annotations

import math
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field

Work = Callable[[Mapping[str, Any]], None]


class ClusterConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: int = Field(1, gt=0, description="one runs in this process, more run under Ray Train")
    gpu: bool | None = Field(None, description="one GPU a worker; left out: where this machine has CUDA")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker")
    address: str | None = Field(
        None, description="Ray cluster to use; left out: a cluster of this machine, for this run"
    )
    timeout_seconds: float = Field(
        1800, gt=0, description="how long a collective operation waits for the slowest worker"
    )

    @property
    def uses_gpu(self) -> bool:
        return torch.cuda.is_available() if self.gpu is None else self.gpu


class WorkerError(RuntimeError):
    """The work failed on a worker. Its cause is the exception of the first worker that failed, where Ray kept it."""


def launch(work: Work, arguments: Mapping[str, Any], cluster: ClusterConfig, storage: Path) -> None:
    """Call `work(arguments)` on every worker with a process group of all of them; returns when all are done.

    `arguments` travel to other processes and must pickle. `storage` is a folder all nodes see, for Ray's own files.
    Raises WorkerError where a worker under Ray fails, and whatever `work` raises where it runs in this process.
    """
    if cluster.workers == 1 and cluster.address is None:
        with process_group(dist.HashStore(), 0, 1, cluster, one_node=True):
            work(arguments)
    else:
        _launch_ray(work, arguments, cluster, storage)


@contextmanager
def process_group(store: dist.Store, rank: int, count: int, cluster: ClusterConfig, one_node: bool) -> Iterator[None]:
    """The default process group, NCCL with gloo for CPU tensors on GPUs and gloo elsewhere, taken down at the end."""
    if one_node:
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    backend = "cpu:gloo,cuda:nccl" if cluster.uses_gpu else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=cluster.timeout_seconds)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _launch_ray(work: Work, arguments: Mapping[str, Any], cluster: ClusterConfig, storage: Path) -> None:
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    class Trainer(DataParallelTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Ctrl-C to the caller: Ray's own handler would abort the workers before they save a checkpoint."""

    trainer = Trainer(
        _on_worker,
        train_loop_config={"work": work, "arguments": dict(arguments), "cluster": cluster.model_dump()},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.uses_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.uses_gpu else {}),
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(storage.resolve()), failure_config=FailureConfig(max_failures=0)
        ),
    )
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            if cluster.address:
                ray.init(cluster.address, logging_level="error", log_to_driver=False)
            else:
                cpus = max(1, round(cluster.workers * cluster.cpus_per_worker))
                ray.init(
                    num_cpus=cpus,
                    include_dashboard=False,
                    logging_level="error",
                    log_to_driver=False,
                    _node_ip_address="127.0.0.1",
                )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            rank, cause = _first_failure(error.worker_failures)
            cause.add_note(f"on worker {rank}: {error.worker_failures[rank]}")
            raise WorkerError(f"worker {rank} of {cluster.workers} failed: {_last_line(cause)}") from cause
        except ControllerError as error:
            raise WorkerError(f"the workers could not be run: {_last_line(error)}") from error


def _first_failure(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """The failure that came first: it takes the other workers with it, through their broken connections."""
    own = {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}
    return min(own.items(), key=lambda item: getattr(item[1], "failed_at", math.inf))


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _on_worker(config: dict[str, Any]) -> None:
    import ray.train

    context, cluster = ray.train.get_context(), ClusterConfig(**config["cluster"])
    one_node = context.get_local_world_size() == context.get_world_size()
    store = _file_store(context.get_world_size()) if one_node else _network_store(context, cluster)
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_world_size())
    with process_group(store, context.get_world_rank(), context.get_world_size(), cluster, one_node):
        try:
            config["work"](config["arguments"])
        except Exception as error:
            error.failed_at = time.time()  # type: ignore[attr-defined]
            raise


def _file_store(count: int) -> dist.Store:
    """A rendezvous through a file: nothing listens on the network where all workers are on one node."""
    from ray.train.collective import broadcast_from_rank_zero

    path = broadcast_from_rank_zero(tempfile.mktemp(prefix="asymdiffrec-rendezvous-"))
    return dist.FileStore(path, count)


def _network_store(context: Any, cluster: ClusterConfig) -> dist.Store:
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    with socket.socket() as probe:
        probe.bind(("", 0))
        address = (ray.util.get_node_ip_address(), probe.getsockname()[1])
    host, port = broadcast_from_rank_zero(address)
    return dist.TCPStore(
        host,
        port,
        context.get_world_size(),
        is_master=context.get_world_rank() == 0,
        timeout=timedelta(seconds=cluster.timeout_seconds),
    )
