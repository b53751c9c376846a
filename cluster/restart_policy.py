"""Decide whether Ray starts the workers again after a worker failed."""

from __future__ import annotations

import json

from ray.train import FailureConfig, TrainingFailedError

from asymdiffrec.cluster.errors import HostLeavingError
from asymdiffrec.cluster.failures import describe_failure, first_failure
from asymdiffrec.cluster.ray_compat import RestartPolicy


class WorkerRestarts(RestartPolicy):
    """A policy that starts the workers again unless the first failure is a permanent error.

    HostLeavingError does not count as a failure. The policy appends the reason of each restart to `file`, one JSON
    string per line.
    """

    def __init__(
        self,
        config: FailureConfig,
        permanent_errors: tuple[type[Exception], ...],
        file: str,
        timeout_seconds: float,
    ) -> None:
        super().__init__(config)
        self._permanent_errors, self._file, self._timeout_seconds = permanent_errors, file, timeout_seconds

    def is_permanent(self, error: TrainingFailedError) -> bool:
        """Return whether the first failure is one of the permanent errors."""
        first = first_failure(error)
        return first is not None and isinstance(first[1], self._permanent_errors)

    def is_free(self, error: TrainingFailedError) -> bool:
        """Return whether the workers ended because the cluster removes a host."""
        first = first_failure(error)
        return first is not None and isinstance(first[1], HostLeavingError)

    def on_restart(self, error: TrainingFailedError) -> None:
        """Append the reason of the restart to the file."""
        line = f"{describe_failure(error, self._timeout_seconds)}; the workers are started again"
        with open(self._file, "a") as file:
            file.write(json.dumps(line) + "\n")
