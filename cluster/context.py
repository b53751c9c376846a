"""The context of a worker function: the hosts of the workers, and functions that talk to Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClusterContext:
    """A worker's view of the cluster that it runs on.

    `is_leaving` and `publish` do something under Ray only.
    """

    ranks_by_host: Sequence[Sequence[int]]
    """Ranks on each host, hosts in the order of their first rank"""
    is_leaving: Callable[[], bool] = lambda: False
    """Return whether a host of the workers is about to be taken away"""
    publish: Callable[[Mapping[str, Any]], None] = lambda values: None
    """Set Ray's metrics, which Prometheus collects, to the numbers among the values"""


WorkerFunction = Callable[[Mapping[str, Any], ClusterContext], None]
"""A function that every worker calls with the arguments of `launch` and its own context"""
