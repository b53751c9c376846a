"""Workers that torchrun has started, or whatever else sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each."""

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
from asymdiffrec.cluster.process_group import Place, Work, machines_of, place_on, process_group

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(hours=1)
"""For all workers to be there, and for the first one to have looked at the input"""
KEY = "work"


def started() -> tuple[int, int] | None:
    """This process's rank and the number of all, where they were started so."""
    if not all(os.environ.get(name) for name in NAMES):
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def restarts() -> int:
    """How often torchrun has started the workers again, after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def lead(work: Work, arguments: Mapping[str, Any], cluster: ClusterConfig) -> None:
    """Call `work` on this worker, the first one, and on all that `follow`."""
    store = _store()
    store.set(KEY, pickle.dumps((work, dict(arguments), cluster)))  # type: ignore[arg-type]  # takes bytes too
    _run(store, work, arguments, cluster)


def follow() -> None:
    """Do what the first worker leads. It alone is told to stop: a signal that torchrun passes on to all ends none."""
    try:
        store = _store()
        work, arguments, cluster = pickle.loads(store.get(KEY))
    except dist.DistError as error:
        raise SystemExit("the first worker has ended") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _run(store, work, arguments, cluster)


def _store() -> dist.Store:
    store: dist.Store = next(dist.rendezvous("env://", timeout=PATIENCE))[0]
    return dist.PrefixStore(f"start-{restarts()}", store)  # torchrun's own outlives the workers


def _run(store: dist.Store, work: Work, arguments: Mapping[str, Any], cluster: ClusterConfig) -> None:
    (rank, count), cluster = started() or (0, 1), cluster.resolved()
    if _is_loopback(os.environ["MASTER_ADDR"]):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with process_group(store, rank, count, cluster, one_node=False):
        machines = machines_of(os.environ.get("GROUP_RANK", socket.gethostname()))
        place_on(machines, int(os.environ.get("LOCAL_RANK", "0")), bool(cluster.gpu))
        work(arguments, Place(machines))


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
