"""The first failure among Ray's workers, and its description."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, NCCLHangError, WorkerGroupError

from asymdiffrec.base import OtherRankError
from asymdiffrec.cluster.errors import HostLeavingError
from asymdiffrec.cluster.failures import describe_failure, first_failure
from asymdiffrec.cluster.ray_compat import worker_exceptions
from asymdiffrec.cluster.restart_policy import WorkerRestarts


def failed(error: Exception, at: float, world_size: int = 4) -> Exception:
    """Return an exception with the attributes that a worker adds."""
    error.failed_at, error.world_size = at, world_size  # type: ignore[attr-defined]
    return error


def test_first_failure_is_the_earliest() -> None:
    error = WorkerGroupError("", {0: failed(OSError("connection reset"), 2.0), 1: failed(KeyError("column"), 1.0)})
    assert first_failure(error) == (1, worker_exceptions(error)[1])
    assert describe_failure(error, 120) == "worker 1 failed: 'column'"


def test_death_comes_before_exceptions() -> None:
    error = WorkerGroupError("", {0: failed(OSError("connection reset"), 1.0), 3: ActorDiedError()})
    assert describe_failure(error, 120) == "worker 3 died"


def test_a_rank_that_repeats_the_error_of_another_is_never_the_first() -> None:
    error = WorkerGroupError("", {0: failed(KeyError("column"), 2.0), 1: failed(OtherRankError("'column'"), 1.0)})
    assert describe_failure(error, 120) == "worker 0 failed: 'column'"


def test_timeout_names_the_workers_that_did_not_fail() -> None:
    error = WorkerGroupError("", {rank: failed(RuntimeError("Timed out waiting"), rank) for rank in (0, 1, 2)})
    assert describe_failure(error, 120) == "worker 3 did not join a collective within cluster.timeout_seconds (120 s)"
    error = WorkerGroupError("", {rank: failed(RuntimeError("Timed out waiting"), rank) for rank in (0, 2)})
    assert describe_failure(error, 0.5).startswith("workers 1, 3 did not join a collective")


@pytest.mark.parametrize("error", [ControllerError(ValueError("no such node")), NCCLHangError("no such node", {})])
def test_failure_without_a_failed_worker(error: ControllerError | NCCLHangError) -> None:
    assert first_failure(error) is None
    assert describe_failure(error, 120) == "no such node"


def test_restarts_are_noted_and_permanent_errors_are_not_restarted(tmp_path: Path) -> None:
    from ray.train import FailureConfig

    file = tmp_path / "restarts.jsonl"
    policy = WorkerRestarts(FailureConfig(max_failures=1), (KeyError,), str(file), 120)
    leaving = WorkerGroupError("", {0: failed(HostLeavingError("a host is being taken away"), 1.0)})
    permanent = WorkerGroupError("", {0: failed(KeyError("column"), 1.0)})
    assert [policy.make_decision(leaving).name for _ in range(3)] == ["RETRY"] * 3
    assert policy.make_decision(permanent).name == "RAISE"
    lines = file.read_text().splitlines()
    assert lines == ['"worker 0 failed: a host is being taken away; the workers are started again"'] * 3
