"""Errors around workers, and an exception's text in one line."""

from __future__ import annotations

from asymdiffrec.base import InputError


class ClusterError(InputError):
    """The cluster does not exist, does not answer, or lacks the resources that the workers need."""


class WorkerError(RuntimeError):
    """A worker failed for good. Its cause is the exception of the worker that failed first, if Ray kept it.

    `traceback` is the text of that exception's traceback on its worker; None if the worker died or a collective
    operation timed out.
    """

    def __init__(self, message: str, traceback: str | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback


class HostLeavingError(RuntimeError):
    """A host of the workers is about to be taken away, and a worker function has saved its state.

    Worker functions raise it to be started again on the remaining hosts. It does not count as a failure.
    """


def last_line(error: BaseException) -> str:
    """Return the last line of an exception's text, or its class name if the text is empty."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
