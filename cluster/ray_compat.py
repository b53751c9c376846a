"""All uses of Ray beyond its public interface; check them when Ray is upgraded.

Written against Ray 2.60. Names with an underscore and the modules under `ray._private`,
`ray.train.v2._internal` and `ray.train.v2.api` are private. Each docstring says why the public interface is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import state
from ray.train import ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class Trainer(DataParallelTrainer):
    """Ray's trainer with policies of this project, and without Ray's handler for Ctrl-C.

    Ray's trainer creates its policies itself and has no argument to replace them.
    """

    def __init__(self, *arguments: Any, policies: Mapping[str, Any], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._policies = policies

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**{**settings, **self._policies})

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave Ctrl-C to the caller: Ray's handler would abort the workers before they save a checkpoint."""


class RestartPolicy(DefaultFailurePolicy):
    """Base class of a policy that decides whether the workers are started again after a failure.

    Ray's default policy starts the workers again `max_failures` times, after any error. The policy runs in an actor of
    Ray, so its attributes must be picklable.
    """

    def is_permanent(self, error: TrainingFailedError) -> bool:
        """Return whether a restart would fail with the same error. The workers are then not started again."""
        raise NotImplementedError

    def is_free(self, error: TrainingFailedError) -> bool:
        """Return whether the workers are started again without counting the error as a failure."""
        raise NotImplementedError

    def on_restart(self, error: TrainingFailedError) -> None:
        """Handle the error before the workers are started again."""
        raise NotImplementedError

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return whether Ray starts the workers again or raises the error."""
        if self.is_free(training_failed_error):
            decision = FailureDecision.RETRY
        else:
            decision = super().make_decision(training_failed_error)
        if decision == FailureDecision.RETRY:
            self.on_restart(training_failed_error)
        return decision

    def _is_retryable_error(self, training_failed_error: TrainingFailedError) -> bool:
        if isinstance(training_failed_error, WorkerGroupError):
            return not self.is_permanent(training_failed_error)
        return bool(super()._is_retryable_error(training_failed_error))


class AllowedSizesPolicy(ElasticScalingPolicy):
    """A policy that starts the largest allowed number of workers for which the cluster has resources.

    Ray's policy starts any number between a minimum and a maximum.
    """

    def __init__(self, config: ScalingConfig, world_sizes: Sequence[int]) -> None:
        super().__init__(config)
        self._world_sizes = world_sizes

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # `reserved_resources` is up to 20 s old and includes nodes that are being drained.
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - state.get_draining_nodes().keys()
        usable = {node: resources for node, resources in reserved_resources.items() if node in alive}
        most = super()._count_possible_workers(usable)
        return max((size for size in self._world_sizes if size <= most), default=0)


def worker_exceptions(error: WorkerGroupError) -> dict[int, BaseException]:
    """Return the exception of each failed worker by its rank, without Ray's wrapper around failed health checks."""
    return {
        rank: failure.health_check_failure if isinstance(failure, WorkerHealthCheckFailedError) else failure
        for rank, failure in error.worker_failures.items()
    }


def is_host_leaving() -> bool:
    """Return whether Ray drains a node of this worker group; call it on a worker.

    The public `ray.train.get_preemption_info` is a barrier for all workers, which is too slow for every training step.
    """
    return get_train_context().preemption_context.preemption_info is not None
