"""Find the worker that failed first under Ray, and describe the failure in one line."""

from __future__ import annotations

import math
import time
import traceback

from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, WorkerGroupError

from asymdiffrec.base import OtherRankError
from asymdiffrec.cluster.errors import last_line
from asymdiffrec.cluster.ray_compat import worker_exceptions


def mark_failure(error: Exception, world_size: int) -> None:
    """Store the time of the failure, the number of workers and the traceback as attributes of a worker's exception.

    Python pickles these attributes with the exception, so they reach the process that called `launch`. It does not
    pickle the traceback of an exception.
    """
    error.failed_at, error.world_size = time.time(), world_size  # type: ignore[attr-defined]
    error.worker_traceback = "".join(traceback.format_exception(error))  # type: ignore[attr-defined]


def first_failure(error: TrainingFailedError) -> tuple[int, BaseException] | None:
    """Return rank and exception of the worker that failed first, or None if no worker failed.

    The other workers fail later, because their connections to the first worker break. A worker that died counts as the
    first, because its process could not store the time. A worker with OtherRankError counts as the last, because the
    error was raised on another worker.
    """
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return None
    return min(worker_exceptions(error).items(), key=lambda item: _failure_time(item[1]))


def describe_failure(error: TrainingFailedError, timeout_seconds: float) -> str:
    """Return one line that says why the workers ended; `timeout_seconds` is cluster.timeout_seconds."""
    first = first_failure(error)
    if first is None:
        return last_line(error)
    rank, cause = first
    if _is_death(cause):
        return f"worker {rank} died"
    silent = sorted(set(range(getattr(cause, "world_size", 0))) - worker_exceptions(error).keys())
    if is_timeout(cause) and silent:
        workers = f"worker {silent[0]}" if len(silent) == 1 else f"workers {', '.join(map(str, silent))}"
        return f"{workers} did not join a collective within cluster.timeout_seconds ({timeout_seconds:g} s)"
    return f"worker {rank} failed: {last_line(cause)}"


def is_timeout(error: BaseException) -> bool:
    """Return whether a collective operation timed out. The message decides: torch raises a plain RuntimeError."""
    return "timed out" in str(error).lower() or "timeout" in str(error).lower()


def _failure_time(failure: BaseException) -> float:
    if _is_death(failure):
        return -math.inf
    return math.inf if isinstance(failure, OtherRankError) else getattr(failure, "failed_at", math.inf)


def _is_death(failure: BaseException) -> bool:
    return isinstance(failure, RayActorError)
