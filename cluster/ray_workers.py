"""Run workers under Ray Train, in a process group of this package instead of the group of Ray's torch backend."""

from __future__ import annotations

import ipaddress
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

# Ray reads these variables at import. Metrics are off, because without a dashboard nothing collects them. The interval
# is the time until a dead worker is noticed; Ray's default is 2 s.
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

import ray
import ray.train
import torch.distributed as dist
from ray import cloudpickle
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.context import ClusterContext, WorkerFunction
from asymdiffrec.cluster.errors import ClusterError, WorkerError, last_line
from asymdiffrec.cluster.failures import describe_failure, first_failure, is_timeout, mark_failure
from asymdiffrec.cluster.process_group import gather_ranks_by_host, process_group, set_local_rank
from asymdiffrec.cluster.ray_compat import AllowedSizesPolicy, Trainer, is_host_leaving
from asymdiffrec.cluster.ray_connection import ray_connection
from asymdiffrec.cluster.ray_metrics import metrics_publisher
from asymdiffrec.cluster.restart_policy import WorkerRestarts
from asymdiffrec.json_lines import follow_json_lines

TIMEOUT_GRACE_SECONDS = 2.0
"""Pause of a worker after a collective operation timed out. During the pause all other waiting workers fail too, so
that Ray's report shows which worker they waited for."""
ELASTIC_START_TIMEOUT_SECONDS = 5
"""Worker-group start timeout for elastic runs. If a node died and Ray has not noticed it yet, a group that needs the
node never starts; after the timeout Ray tries a smaller group."""
FOLLOW_SECONDS = 0.5
"""Time between two checks of the file that lists the restarts"""


class SharedGPUBackend(Backend):
    """A Ray Train backend that sets up only the visible GPUs."""

    share_cuda_visible_devices = True
    """Each worker sees all GPUs of its node, because a sharding plan assigns a rank to GPU number LOCAL_RANK"""


class SharedGPUBackendConfig(BackendConfig):
    """The configuration through which Ray finds `SharedGPUBackend`."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Return the class of the backend."""
        return SharedGPUBackend


def run_workers(
    work: WorkerFunction,
    arguments: Mapping[str, Any],
    cluster: ClusterConfig,
    storage: Path,
    permanent_errors: tuple[type[Exception], ...],
    world_sizes: Sequence[int],
    on_restart: Callable[[str], None],
) -> None:
    """Call `work` on workers under Ray Train, see `launch`; `world_sizes` has the allowed world sizes, ascending."""
    storage = storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.gpu else {})
    failures, restarts = FailureConfig(max_failures=cluster.max_failures), storage / f"restarts-{uuid.uuid4()}.jsonl"
    policies: dict[str, Any] = {
        "failure_policy": WorkerRestarts(failures, permanent_errors, str(restarts), cluster.timeout_seconds)
    }
    is_elastic = not isinstance(cluster.workers, int)
    scaling = ScalingConfig(
        num_workers=(world_sizes[0], world_sizes[-1]) if is_elastic else world_sizes[0],
        use_gpu=bool(cluster.gpu),
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=cluster.resize_seconds,
    )
    if is_elastic:
        policies["scaling_policy"] = AllowedSizesPolicy(scaling, world_sizes)
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ELASTIC_START_TIMEOUT_SECONDS))
    trainer = Trainer(
        _run_worker,
        policies=policies,
        backend_config=SharedGPUBackendConfig(),
        train_loop_config={
            # Only the workers unpickle this value: Ray's controller may not be able to import the user's modules.
            "work": cloudpickle.dumps((work, dict(arguments))),
            "cluster": cluster.model_dump(),
            "storage": str(storage),
        },
        scaling_config=scaling,
        run_config=RunConfig(name="workers", storage_path=str(storage), failure_config=failures),
    )
    with ray_connection(cluster.address, max(1, math.ceil(cluster.worker_range.max * cluster.cpus_per_worker))):
        _require_resources(resources, world_sizes[0], ray.cluster_resources())
        try:
            with _follow(restarts, on_restart):
                trainer.fit()
        except WorkerGroupError as error:
            _, cause = first_failure(error) or (None, error)
            # The traceback of a timeout shows only where the worker waited, not what the silent workers did.
            traceback = None if is_timeout(cause) else getattr(cause, "worker_traceback", None)
            raise WorkerError(describe_failure(error, cluster.timeout_seconds), traceback) from cause
        except ControllerError as error:
            raise WorkerError(f"Ray Train could not run the workers: {last_line(error)}") from error


@contextmanager
def _follow(file: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Call `show` with each JSON string that is appended to a file during the block; remove the file at the end."""

    def show_lines(lines: list[str], _is_new_file: bool) -> None:
        for line in lines:
            show(line)

    try:
        with follow_json_lines(file, show_lines, seconds=FOLLOW_SECONDS):
            yield
    finally:
        file.unlink(missing_ok=True)


def _require_resources(resources: Mapping[str, float], workers: int, available: Mapping[str, float]) -> None:
    """Raise ClusterError if the cluster can never run the workers; Ray would wait forever without a message."""
    for name, amount in resources.items():
        if workers * amount > available.get(name, 0):
            raise ClusterError(
                f"{workers} workers with {amount:g} {name} each need {workers * amount:g} {name}; "
                f"the Ray cluster has {available.get(name, 0):g}"
            )


def _run_worker(config: dict[str, Any]) -> None:
    context, cluster = ray.train.get_context(), ClusterConfig(**config["cluster"])
    rank, world_size = context.get_world_rank(), context.get_world_size()
    one_host = context.get_local_world_size() == world_size
    store = _file_store(config["storage"], world_size) if one_host else _network_store(rank, world_size, cluster)
    with process_group(store, rank, world_size, cluster, one_host):
        try:
            ranks_by_host = gather_ranks_by_host(ray.get_runtime_context().get_node_id())
            set_local_rank(ranks_by_host, context.get_local_rank(), bool(cluster.gpu))
            work, arguments = cloudpickle.loads(config["work"])
            work(arguments, ClusterContext(ranks_by_host, is_host_leaving, metrics_publisher(rank)))
        except Exception as error:
            mark_failure(error, world_size)
            if is_timeout(error):
                time.sleep(TIMEOUT_GRACE_SECONDS)
            raise


def _file_store(storage: str, world_size: int) -> dist.Store:
    """Return a store for workers on one node. The store uses a file and needs no network port."""
    return dist.FileStore(broadcast_from_rank_zero(f"{storage}/rendezvous-{uuid.uuid4()}"), world_size)


def _network_store(rank: int, world_size: int, cluster: ClusterConfig) -> dist.Store:
    """Return a TCP store. Its server runs on rank 0 and listens only on the address that Ray uses for that node."""
    address, is_master = ray.util.get_node_ip_address(), rank == 0
    if ipaddress.ip_address(address).is_loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    server = socket.create_server((address, 0)) if is_master else None
    host, port = broadcast_from_rank_zero(server.getsockname()[:2] if server else None)
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=is_master,
        timeout=timedelta(seconds=cluster.timeout_seconds),
        master_listen_fd=server.detach() if server else None,
    )
