"""Run independent tasks in parallel under Ray, on this host or on a remote cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from asymdiffrec.cluster.launch import stay_on_loopback

T = TypeVar("T")

MAX_RETRIES = 2
"""Maximum number of times that Ray runs a task again after its process died. A task that raised an error is not run
again."""


def run_in_parallel(
    work: Callable[[T], Any], items: Sequence[T], parallel: int, address: str | None
) -> Iterator[tuple[T, Any]]:
    """Yield each item with the result of `work` for the item, in the order in which the tasks finish.

    At most `parallel` tasks run at a time, each with one CPU. `work`, the items and the results must be picklable.
    Without an address, a Ray cluster with `parallel` CPUs is started on this host and stopped after the last item.

    Raises ClusterError if the cluster cannot be used. If `work` raises an exception, this function raises the exception
    too and cancels the remaining tasks.
    """
    if address is None:
        stay_on_loopback()
    import ray
    from ray.exceptions import RayTaskError

    from asymdiffrec.cluster.ray_connection import ray_connection  # Ray takes seconds to import

    with ray_connection(address, parallel):
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(call_in_folder)
        waiting, running = list(reversed(items)), dict[Any, T]()
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    item = waiting.pop()
                    running[remote.remote(work, item, os.getcwd())] = item
                (finished,), _ = ray.wait(list(running), num_returns=1)
                item = running.pop(finished)
                try:
                    result = ray.get(finished)
                except RayTaskError as error:
                    raise error.cause from None
                yield item, result
        finally:
            for task in running:
                ray.cancel(task, force=True)


def call_in_folder(work: Callable[[T], Any], item: T, folder: str) -> Any:
    """Return work(item). If `folder` exists on this host, change to this folder and add it to the import path.

    `folder` is the folder where the command was started: relative paths and modules of the user refer to this folder.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
        if folder not in sys.path:
            sys.path.insert(0, folder)
    return work(item)
