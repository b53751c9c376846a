"""Set up the process group of all workers, and find out which ranks share a host."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from asymdiffrec.base import gather_all
from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.errors import ClusterError
from asymdiffrec.torch_compat import default_process_group


@contextmanager
def process_group(
    store: dist.Store, rank: int, world_size: int, cluster: ClusterConfig, one_host: bool
) -> Iterator[None]:
    """Set up torch's default process group for the block: gloo for CPU tensors and, with GPUs, NCCL for CUDA tensors.

    If `one_host` is true, all traffic stays on the loopback interface, and TorchRec is told that all ranks share the
    host.
    """
    if one_host:
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
    backend = "cpu:gloo,cuda:nccl" if cluster.resolved().gpu else "gloo"
    timeout = timedelta(seconds=cluster.timeout_seconds)
    with default_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout):
        yield


def gather_ranks_by_host(host: str) -> list[list[int]]:
    """Return the ranks on each host; the hosts are ordered by their first rank.

    All workers must call this function together. `host` is a unique name of this worker's host.
    """
    hosts = gather_all(host)
    return [[rank for rank, other in enumerate(hosts) if other == name] for name in dict.fromkeys(hosts)]


def set_local_rank(ranks_by_host: Sequence[Sequence[int]], local_rank: int, gpu: bool) -> None:
    """Tell TorchRec, through LOCAL_RANK and LOCAL_WORLD_SIZE, which ranks share this worker's host.

    TorchRec assumes that every host has the same number of consecutive ranks. If this assumption is false, each rank
    is treated as a separate host. With GPUs, ClusterError is raised instead, because LOCAL_RANK is also the GPU number
    of the rank.
    """
    size = len(ranks_by_host[0])
    is_regular = all(
        list(ranks) == list(range(host * size, (host + 1) * size)) for host, ranks in enumerate(ranks_by_host)
    )
    if not is_regular and gpu:
        raise ClusterError(
            f"ranks by host are {list(map(list, ranks_by_host))}; with GPUs every host needs the same number of "
            "consecutive ranks: choose another number of workers, or hosts with the same number of GPUs"
        )
    os.environ["LOCAL_RANK"] = str(local_rank if is_regular else 0)
    os.environ["LOCAL_WORLD_SIZE"] = str(size if is_regular else 1)
