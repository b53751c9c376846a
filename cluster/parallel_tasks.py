"""Independent pieces of work, several at a time, as Ray's tasks: on this machine or on a cluster that is elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from asymdiffrec.cluster.launch import stay_on_loopback

T = TypeVar("T")


def side_by_side(
    work: Callable[[T], Any], items: Sequence[T], at_once: int, address: str | None
) -> Iterator[tuple[T, Any]]:
    """Each item with what `work` made of it, as they end; `at_once` of them at a time, with a CPU each.

    `work` and the items must pickle. Without an address Ray is started on this machine with so many CPUs, and ends with
    the last item. Raises what `work` raises, and ClusterError where there is no such cluster; the others are cancelled
    then.
    """
    if address is None:
        stay_on_loopback()
    import ray
    from ray.exceptions import RayTaskError

    from asymdiffrec.cluster.ray_cluster import connected  # Ray takes seconds to import

    with connected(address, at_once):
        remote = ray.remote(num_cpus=1, max_retries=2)(in_folder)
        waiting, running = list(reversed(items)), dict[Any, T]()
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    item = waiting.pop()
                    running[remote.remote(work, item, os.getcwd())] = item
                (done,), _ = ray.wait(list(running), num_returns=1)
                item = running.pop(done)
                try:
                    made = ray.get(done)
                except RayTaskError as error:
                    raise error.cause from None
                yield item, made
        finally:
            for task in running:
                ray.cancel(task, force=True)


def in_folder(work: Callable[[T], Any], item: T, folder: str) -> Any:
    """The work in the folder that relative paths and modules of one's own are meant from, where the machine has it."""
    if os.path.isdir(folder):
        os.chdir(folder)
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return work(item)
