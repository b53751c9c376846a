"""Workers under Ray Train: one process group over all of them, found without Ray's own torch backend."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

# Read at import. Without a dashboard nobody collects the metrics; a dead worker is noticed sooner than in 2 s.
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

import ray
import ray.train
import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from asymdiffrec.cluster.launch import ClusterConfig, ClusterError, Work, WorkerError, process_group


class Trainer(DataParallelTrainer):
    """Ray's, but for what it does after a failure and for Ctrl-C."""

    def __init__(self, *arguments: Any, failures: Failures, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._failures = failures

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**settings | {"failure_policy": self._failures})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the caller: Ray's own handler would abort the workers before they save a checkpoint."""


class Failures(DefaultFailurePolicy):
    """Starts workers again, unless they failed by an error that would only come again; writes down why, for `tell`."""

    def __init__(self, config: FailureConfig, permanent: tuple[type[Exception], ...], file: str) -> None:
        super().__init__(config)
        self._permanent, self._file = permanent, file

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        decision = super().make_decision(training_failed_error)
        if decision == FailureDecision.RETRY:
            with open(self._file, "a") as file:
                file.write(json.dumps(f"{_described(training_failed_error)}; the workers are started again") + "\n")
        return decision

    def _is_retryable_error(self, training_failed_error: TrainingFailedError) -> bool:
        if isinstance(training_failed_error, WorkerGroupError):
            return not isinstance(_first_failure(training_failed_error.worker_failures)[1], self._permanent)
        return bool(super()._is_retryable_error(training_failed_error))


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
    tell: Callable[[str], None],
) -> None:
    """`launch` for more than one worker, or for a cluster that is elsewhere."""
    storage = storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.gpu else {})
    failures, file = FailureConfig(max_failures=cluster.max_failures), storage / f"failures-{uuid.uuid4()}.jsonl"
    trainer = Trainer(
        _on_worker,
        failures=Failures(failures, permanent, str(file)),
        backend_config=NodeBackendConfig(),
        train_loop_config={
            "work": work,
            "arguments": dict(arguments),
            "cluster": cluster.model_dump(),
            "storage": str(storage),
        },
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=bool(cluster.gpu), resources_per_worker=resources
        ),
        run_config=RunConfig(name="workers", storage_path=str(storage), failure_config=failures),
    )
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            _connect(cluster)
        _require(resources, cluster.workers, ray.cluster_resources())
        stack.enter_context(_told(file, tell))
        try:
            trainer.fit()
        except WorkerGroupError as error:
            rank, cause = _first_failure(error.worker_failures)
            cause.add_note(f"on worker {rank}: {error.worker_failures[rank]}")
            raise WorkerError(_described(error)) from cause
        except ControllerError as error:
            raise WorkerError(f"the workers could not be run: {_last_line(error)}") from error


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


def _connect(cluster: ClusterConfig) -> None:
    """To the cluster at `address`, or to a new one of this machine. Workers speak through files, not Ray's log."""
    if cluster.address is None:
        cpus = max(1, math.ceil(cluster.workers * cluster.cpus_per_worker))
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        return
    try:
        ray.init(cluster.address, logging_level="error", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster answers at {cluster.address}: {_last_line(error)}") from error


def _require(resources: Mapping[str, float], workers: int, held: Mapping[str, float]) -> None:
    """Raise ClusterError where the cluster will never have room for the workers: Ray itself would wait in silence."""
    for name, amount in resources.items():
        if workers * amount > held.get(name, 0):
            raise ClusterError(
                f"{workers} workers with {amount:g} {name} each ask for {workers * amount:g} {name}; "
                f"the Ray cluster has {held.get(name, 0):g}"
            )


def _first_failure(failures: Mapping[int, BaseException]) -> tuple[int, BaseException]:
    """The failure that came first: it takes the other workers with it, through their broken connections."""
    own = {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}

    def when(item: tuple[int, BaseException]) -> float:
        return -math.inf if isinstance(item[1], RayActorError) else getattr(item[1], "failed_at", math.inf)

    return min(own.items(), key=when)


def _described(error: TrainingFailedError) -> str:
    """One line for what ended the workers."""
    if not isinstance(error, WorkerGroupError):
        return _last_line(error)
    rank, cause = _first_failure(error.worker_failures)
    if isinstance(cause, RayActorError):
        return f"worker {rank} died"
    return f"worker {rank} failed: {_last_line(cause)}"


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _on_worker(config: dict[str, Any]) -> None:
    context, cluster = ray.train.get_context(), ClusterConfig(**config["cluster"])
    one_node = context.get_local_world_size() == context.get_world_size()
    count = context.get_world_size()
    store = _file_store(config["storage"], count) if one_node else _network_store(context, cluster)
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    os.environ["LOCAL_WORLD_SIZE"] = str(context.get_local_world_size())
    with process_group(store, context.get_world_rank(), count, cluster, one_node):
        try:
            config["work"](config["arguments"], _leaving)
        except Exception as error:
            error.failed_at = time.time()  # type: ignore[attr-defined]
            raise


def _leaving() -> bool:
    """Whether Ray drains a node of the workers. Its public function for this is collective, and is not rare enough."""
    return get_train_context().preemption_context.preemption_info is not None


def _file_store(storage: str, count: int) -> dist.Store:
    """A rendezvous through a file: nothing listens on the network where all workers are on one node."""
    return dist.FileStore(broadcast_from_rank_zero(f"{storage}/rendezvous-{uuid.uuid4()}"), count)


def _network_store(context: Any, cluster: ClusterConfig) -> dist.Store:
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
