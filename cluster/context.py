"""The context of a worker function: the hosts of the workers, and functions that call Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClusterContext:
    """The cluster as a worker sees it.

    Without Ray, `is_leaving` returns false and `publish` does nothing.
    """

    ranks_by_host: Sequence[Sequence[int]]
    """Ranks on each host; the hosts are ordered by their first rank"""
    is_leaving: Callable[[], bool] = lambda: False
    """Return whether the cluster is about to remove a host of the workers"""
    publish: Callable[[Mapping[str, Any]], None] = lambda values: None
    """Publish each value that is a number as a metric of Ray; Prometheus collects these metrics"""


WorkerFunction = Callable[[Mapping[str, Any], ClusterContext], None]
"""A function that every worker calls with the arguments of `launch` and the context of the worker"""
