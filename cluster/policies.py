"""What Ray Train does after a failure, and how many workers it starts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import RayActorError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from asymdiffrec.cluster.errors import LeavingError, last_line


class Trainer(DataParallelTrainer):
    """Ray's, with policies of ours, and without its handler of Ctrl-C."""

    def __init__(self, *arguments: Any, policies: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._policies = policies

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**{**settings, **self._policies})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the caller: Ray's own handler would abort the workers before they save a checkpoint."""


class Failures(DefaultFailurePolicy):
    """Starts workers again, unless they failed by an error that would only come again; writes down why, a JSON string
    a line."""

    def __init__(self, config: FailureConfig, permanent: tuple[type[Exception], ...], file: str) -> None:
        super().__init__(config)
        self._permanent, self._file = permanent, file

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if isinstance(training_failed_error, WorkerGroupError) and isinstance(
            first_failure(training_failed_error)[1], LeavingError
        ):
            decision = FailureDecision.RETRY  # which counts as no failure
        else:
            decision = super().make_decision(training_failed_error)
        if decision == FailureDecision.RETRY:
            with open(self._file, "a") as file:
                file.write(json.dumps(f"{described(training_failed_error)}; the workers are started again") + "\n")
        return decision

    def _is_retryable_error(self, training_failed_error: TrainingFailedError) -> bool:
        if isinstance(training_failed_error, WorkerGroupError):
            return not isinstance(first_failure(training_failed_error)[1], self._permanent)
        return bool(super()._is_retryable_error(training_failed_error))


class Numbers(ElasticScalingPolicy):
    """As many workers as there is room for, among the numbers that are allowed."""

    def __init__(self, config: ScalingConfig, allowed: Sequence[int]) -> None:
        super().__init__(config)
        self._allowed = allowed

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # Ray itself looks every 20 s which nodes there are, and counts those that are drained.
        there = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - state.get_draining_nodes().keys()
        reserved = {node: resources for node, resources in reserved_resources.items() if node in there}
        room = super()._count_possible_workers(reserved)
        return max((count for count in self._allowed if count <= room), default=0)


def first_failure(error: WorkerGroupError) -> tuple[int, BaseException]:
    """The rank and the failure that came first: it takes the other workers with it, through broken connections."""
    return min(
        ((rank, _own(failure)) for rank, failure in error.worker_failures.items()),
        key=lambda item: -math.inf if _is_death(item[1]) else getattr(item[1], "failed_at", math.inf),
    )


def _own(failure: BaseException) -> BaseException:
    """What Ray has wrapped."""
    if isinstance(failure, WorkerHealthCheckFailedError):
        return failure.health_check_failure
    own: BaseException = getattr(failure, "_base_exc", failure)
    return own


def _is_death(failure: BaseException) -> bool:
    return isinstance(failure, RayActorError)


def described(error: TrainingFailedError) -> str:
    """One line for what ended the workers."""
    if not isinstance(error, WorkerGroupError):
        return last_line(error)
    rank, cause = first_failure(error)
    if _is_death(cause):
        return f"worker {rank} died"
    silent = sorted(set(range(getattr(cause, "workers", 0))) - error.worker_failures.keys())
    if is_timeout(cause) and silent:
        names = f"worker {silent[0]} was" if len(silent) == 1 else f"workers {', '.join(map(str, silent))} were"
        return f"{names} waited for in vain, for cluster.timeout_seconds, by the others"
    return f"worker {rank} failed: {last_line(cause)}"


def is_timeout(error: BaseException) -> bool:
    """Whether a collective operation waited too long: torch has no class for it."""
    return "timed out" in str(error).lower() or "timeout" in str(error).lower()
