"""What goes wrong around workers, and how an exception is said in a line."""

from __future__ import annotations

from asymdiffrec.base import InputError


class ClusterError(InputError):
    """There is no such cluster, or it lacks what the workers ask for."""


class WorkerError(RuntimeError):
    """The work failed on a worker. Its cause is the exception of the first worker that failed, where Ray kept it."""


class LeavingError(RuntimeError):
    """A machine of the workers is about to be taken away, and what they did is safe: for `work` to raise."""


def last_line(error: BaseException) -> str:
    """What an exception says, in a line: the last one of its text, or its name where it says nothing."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
