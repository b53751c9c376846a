"""Connect to a running Ray cluster, or to a new cluster on this host that ends with the connection."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

import ray

from asymdiffrec.cluster.errors import ClusterError, last_line


@contextmanager
def ray_connection(address: str | None, cpus: int) -> Iterator[None]:
    """Connect to the cluster at `address`, or start a cluster with `cpus` CPUs on this host, for the block.

    If this process is already connected to Ray, the existing connection is used and stays open. Output of the workers
    is not forwarded, because the workers report through files. Raises ClusterError if no cluster answers.
    """
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints its own warnings on standard output
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            with _keep_handler(signal.SIGTERM):
                _connect(address, cpus)
        yield


@contextmanager
def _keep_handler(number: signal.Signals) -> Iterator[None]:
    """Restore the handler of a signal after the block.

    When Ray connects, it installs a SIGTERM handler that would end this process before the workers save a checkpoint.
    """
    handler = signal.getsignal(number)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _connect(address: str | None, cpus: int) -> None:
    if address is None:
        ray.init(
            "local",  # start a new cluster, even if another cluster runs on this host
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
