"""Errors of clusters and workers, and a function that shortens the text of an exception to one line."""

from __future__ import annotations

from asymdiffrec.base import InputError


class ClusterError(InputError):
    """Error of a cluster: it does not exist, does not answer, or lacks the resources that the workers need."""


class WorkerError(RuntimeError):
    """Permanent failure of a worker. The cause is the exception of the worker that failed first, if Ray stored it.

    `traceback` is the traceback of the cause on its worker, as text; None if the worker died or a collective operation
    timed out.
    """

    def __init__(self, message: str, traceback: str | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback


class HostLeavingError(RuntimeError):
    """Signal that the cluster is about to remove a host of the workers, and that the workers have saved their state.

    A worker function raises it, so that Ray starts the workers again on the remaining hosts. This error does not count
    as a failure.
    """


def last_line(error: BaseException) -> str:
    """Return the last line of an exception's text, or its class name if the text is empty."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
