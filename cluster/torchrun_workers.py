"""Run workers that torchrun or another launcher started.

The launcher sets the environment variables RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import ipaddress
import os
import pickle
import signal
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.context import ClusterContext, WorkerFunction
from asymdiffrec.cluster.process_group import gather_ranks_by_host, process_group, set_local_rank

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
START_TIMEOUT = timedelta(hours=1)
"""Maximum time until all workers have started and rank 0 has checked the input"""
WORK_KEY = "work"
"""Key of the store under which rank 0 puts the worker function and its arguments"""


def rank_and_world_size() -> tuple[int, int] | None:
    """Return the rank of this process and the number of workers, or None if no launcher started this process."""
    if not all(os.environ.get(name) for name in LAUNCHER_VARIABLES):
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def restart_count() -> int:
    """Return how often torchrun has restarted the workers after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def lead(work: WorkerFunction, arguments: Mapping[str, Any], cluster: ClusterConfig) -> None:
    """Call `work` on this worker, rank 0, and on all workers that call `follow`."""
    store = _store()
    store.set(WORK_KEY, pickle.dumps((work, dict(arguments), cluster)))  # type: ignore[arg-type]  # takes bytes too
    _run(store, work, arguments, cluster)


def follow() -> None:
    """Run the worker function that rank 0 passes to `lead`.

    SIGINT and SIGTERM are ignored: torchrun sends these signals to all workers, but only rank 0 decides when to stop.
    """
    try:
        store = _store()
        work, arguments, cluster = pickle.loads(store.get(WORK_KEY))
    except dist.DistError as error:
        raise SystemExit("rank 0 ended before it sent a worker function to this worker") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _run(store, work, arguments, cluster)


def _store() -> dist.Store:
    store: dist.Store = next(dist.rendezvous("env://", timeout=START_TIMEOUT))[0]
    # torchrun's store outlives the workers: keys of an earlier start must not be read after a restart.
    return dist.PrefixStore(f"start-{restart_count()}", store)


def _run(store: dist.Store, work: WorkerFunction, arguments: Mapping[str, Any], cluster: ClusterConfig) -> None:
    (rank, world_size), cluster = rank_and_world_size() or (0, 1), cluster.resolved()
    if _is_loopback(os.environ["MASTER_ADDR"]):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with process_group(store, rank, world_size, cluster, one_host=False):
        ranks_by_host = gather_ranks_by_host(os.environ.get("GROUP_RANK", socket.gethostname()))
        set_local_rank(ranks_by_host, int(os.environ.get("LOCAL_RANK", "0")), bool(cluster.gpu))
        work(arguments, ClusterContext(ranks_by_host))


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
