"""A connection to Ray: to a cluster that is there, or to a new one of this machine that ends with the connection."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

import ray

from asymdiffrec.cluster.errors import ClusterError, last_line


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """To the cluster at `address`, or, without one, to a new one with so many CPUs; where Ray is connected, that stays.

    Workers speak through files, not Ray's log. Raises ClusterError where no cluster answers.
    """
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints its own warnings on standard output
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            with _same_handler_of(signal.SIGTERM):
                _connect(address, cpus)
        yield


@contextmanager
def _same_handler_of(number: signal.Signals) -> Iterator[None]:
    """Leave a signal to the caller, though Ray takes it as it connects: Ray would end this process before the workers
    have saved a checkpoint."""
    handler = signal.getsignal(number)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _connect(address: str | None, cpus: int) -> None:
    if address is None:
        ray.init(
            "local",  # whatever other cluster runs on this machine
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="critical",
            log_to_driver=False,
        )
        return
    try:
        ray.init(address, logging_level="critical", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {last_line(error)}") from error
