"""Workers under Ray Train: one process group over all of them, found without Ray's own torch backend."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

# Read at import. Without a dashboard nobody collects the metrics; a dead worker is noticed sooner than in 2 s.
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

import ray
import ray.train
import torch.distributed as dist
from ray import cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.metrics import Gauge

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.errors import ClusterError, WorkerError, last_line
from asymdiffrec.cluster.policies import Failures, Numbers, Trainer, described, first_failure, is_timeout
from asymdiffrec.cluster.process_group import Place, Work, machines_of, place_on, process_group
from asymdiffrec.cluster.ray_cluster import connected

LAST_WORD = 2.0
"""Seconds that a worker waits after a collective operation that took too long: so that all that waited in vain have
failed too, and the one that they waited for is known"""

ROOM_SECONDS = 5
"""How long a range of workers waits for the room that was there: it is gone with a node whose death Ray had not noticed
yet, and then fewer workers have room"""


class NodeBackend(Backend):
    share_cuda_visible_devices = True
    """A plan places rank r on its node's GPU number LOCAL_RANK, so each worker has to see all of its node's."""


class NodeBackendConfig(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return NodeBackend


def run_workers(
    work: Work,
    arguments: Mapping[str, Any],
    cluster: ClusterConfig,
    storage: Path,
    permanent: tuple[type[Exception], ...],
    numbers: Sequence[int],
    tell: Callable[[str], None],
) -> None:
    """`launch` for more than one worker, or for a cluster that is elsewhere; `numbers` of workers are allowed."""
    storage = storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.gpu else {})
    failures, file = FailureConfig(max_failures=cluster.max_failures), storage / f"failures-{uuid.uuid4()}.jsonl"
    policies: dict[str, Any] = {"failure_policy": Failures(failures, permanent, str(file))}
    is_fixed = isinstance(cluster.workers, int)
    scaling = ScalingConfig(
        num_workers=numbers[0] if is_fixed else (numbers[0], numbers[-1]),
        use_gpu=bool(cluster.gpu),
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=cluster.resize_seconds,
    )
    if not is_fixed:
        policies["scaling_policy"] = Numbers(scaling, numbers)
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(ROOM_SECONDS))
    trainer = Trainer(
        _on_worker,
        policies=policies,
        backend_config=NodeBackendConfig(),
        train_loop_config={
            "work": cloudpickle.dumps((work, dict(arguments))),  # for the workers: Ray's controller need not import it
            "cluster": cluster.model_dump(),
            "storage": str(storage),
        },
        scaling_config=scaling,
        run_config=RunConfig(name="workers", storage_path=str(storage), failure_config=failures),
    )
    with connected(cluster.address, max(1, math.ceil(cluster.range.max * cluster.cpus_per_worker))):
        _require(resources, numbers[0], ray.cluster_resources())
        try:
            with _told(file, tell):
                trainer.fit()
        except WorkerGroupError as error:
            rank, cause = first_failure(error)
            cause.add_note(f"on worker {rank}: {error.worker_failures[rank]}")
            raise WorkerError(described(error)) from cause
        except ControllerError as error:
            raise WorkerError(f"the workers could not be run: {last_line(error)}") from error


@contextmanager
def _told(file: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Pass on each line that is appended to a file of JSON strings, until the block ends."""
    over = threading.Event()

    def follow() -> None:
        shown, last = 0, False
        while not last:
            last = over.wait(0.5)
            lines = file.read_text().splitlines() if file.exists() else []
            for line in lines[shown:]:
                tell(json.loads(line))
            shown = len(lines)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        file.unlink(missing_ok=True)


def _require(resources: Mapping[str, float], workers: int, held: Mapping[str, float]) -> None:
    """Raise ClusterError where the cluster will never have room for the workers: Ray itself would wait in silence."""
    for name, amount in resources.items():
        if workers * amount > held.get(name, 0):
            raise ClusterError(
                f"{workers} workers with {amount:g} {name} each ask for {workers * amount:g} {name}; "
                f"the Ray cluster has {held.get(name, 0):g}"
            )


def _on_worker(config: dict[str, Any]) -> None:
    context, cluster = ray.train.get_context(), ClusterConfig(**config["cluster"])
    one_node = context.get_local_world_size() == context.get_world_size()
    rank, count = context.get_world_rank(), context.get_world_size()
    store = _file_store(config["storage"], count) if one_node else _network_store(context, cluster)
    with process_group(store, rank, count, cluster, one_node):
        try:
            machines = machines_of(ray.get_runtime_context().get_node_id())
            place_on(machines, context.get_local_rank(), bool(cluster.gpu))
            work, arguments = cloudpickle.loads(config["work"])
            work(arguments, Place(machines, _leaving, _publisher(rank)))
        except Exception as error:
            error.failed_at, error.workers = time.time(), count  # type: ignore[attr-defined]
            if is_timeout(error):
                time.sleep(LAST_WORD)
            raise


def _leaving() -> bool:
    """Whether Ray drains a node of the workers. Its public function for this is a collective operation of its own."""
    return get_train_context().preemption_context.preemption_info is not None


def _publisher(rank: int) -> Callable[[Mapping[str, Any]], None]:
    """Sets a gauge asymdiffrec_NAME for each number, with the rank as its tag: of those of all workers on the first
    one, and its own of those in `ranks` on each."""
    gauges: dict[str, Gauge] = {}

    def publish(values: Mapping[str, Any]) -> None:
        shared = values if rank == 0 else {}
        for key, value in {**shared, **values["ranks"][rank]}.items():
            if isinstance(value, int | float):
                name = f"asymdiffrec_{re.sub('[^0-9A-Za-z]', '_', key)}"
                if name not in gauges:
                    gauges[name] = Gauge(name, tag_keys=("rank",))
                gauges[name].set(value, {"rank": str(rank)})

    return publish


def _file_store(storage: str, count: int) -> dist.Store:
    """A rendezvous through a file: nothing listens on the network where all workers are on one node."""
    return dist.FileStore(broadcast_from_rank_zero(f"{storage}/rendezvous-{uuid.uuid4()}"), count)


def _network_store(context: Any, cluster: ClusterConfig) -> dist.Store:
    """A rendezvous on the first worker, which listens on the address that Ray knows its node by, and on no other."""
    address, is_master = ray.util.get_node_ip_address(), context.get_world_rank() == 0
    if ipaddress.ip_address(address).is_loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    listening = socket.create_server((address, 0)) if is_master else None
    host, port = broadcast_from_rank_zero(listening.getsockname()[:2] if listening else None)
    return dist.TCPStore(
        host,
        port,
        context.get_world_size(),
        is_master=is_master,
        timeout=timedelta(seconds=cluster.timeout_seconds),
        master_listen_fd=listening.detach() if listening else None,
    )
