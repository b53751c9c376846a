"""Ray jobs: send this package and a job file to a cluster, follow the log, and stop the job."""

from __future__ import annotations

import asyncio
import logging
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import asymdiffrec
from asymdiffrec.cluster.errors import ClusterError

POLL_SECONDS = 1.0
"""Time between two requests for the status of a job that is about to end"""
LOG_END_SECONDS = 60
"""Maximum time until a job has its final status after its log stream was closed"""
KILL_SECONDS = 30
"""Maximum time until a job has its final status after Ray got the request to kill the job"""
VERBOSE_LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers of Ray that report every uploaded package and every connection"""


@dataclass(frozen=True)
class Submission:
    """The content of a Ray job that runs the `asymdiffrec` command."""

    arguments: Sequence[str]
    """Arguments of the command; the working directory of the command contains `files`"""
    files: Mapping[str, str]
    """Text of each file by file name"""
    modules: Sequence[Path] = ()
    """Folders of Python modules, and wheels, to install in addition to this package"""
    metadata: Mapping[str, str] = field(default_factory=dict)


class RayJobs:
    """Client of the job server of a Ray cluster.

    address: URL of the job server, for example http://127.0.0.1:8265; None: the environment variable RAY_ADDRESS.

    Every method raises ClusterError if the cluster does not answer or refuses the request.
    """

    def __init__(self, address: str | None) -> None:
        for name in VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._address = address or "the address in RAY_ADDRESS"
        with self._request():
            self._client = JobSubmissionClient(address)

    @contextmanager
    def _request(self) -> Iterator[None]:
        """Turn the errors of a request into ClusterError with one line of text."""
        try:
            yield
        except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            if isinstance(error, AuthenticationError):
                text = "the cluster refuses the token; RAY_AUTH_MODE=token needs RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            elif isinstance(error, ConnectionError):
                text = "no Ray cluster answers; give the URL of its dashboard, such as http://127.0.0.1:8265"
            raise ClusterError(f"{self._address}: {text}") from error

    def submit(self, submission: Submission) -> str:
        """Start a Ray job and return its id. This package is sent to the cluster, but not its dependencies."""
        package = Path(asymdiffrec.__file__).parent
        with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as folder:
            for name, text in submission.files.items():
                Path(folder, name).write_text(text)
            with self._request():
                ray_job_id: str = self._client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "asymdiffrec", *submission.arguments]),
                    runtime_env={"working_dir": folder, "py_modules": [str(package), *map(str, submission.modules)]},
                    metadata=dict(submission.metadata),
                )
        return ray_job_id

    def describe(self, ray_job_id: str) -> JobDetails:
        """Return Ray's details of a job, including its status."""
        with self._request():
            return self._client.get_job_info(ray_job_id)

    def logs(self, ray_job_id: str) -> str:
        """Return the job's output so far."""
        with self._request():
            return str(self._client.get_job_logs(ray_job_id))

    def follow(self, ray_job_id: str, show: Callable[[str], None]) -> JobDetails:
        """Call `show` with all output of the job, as the job prints it; return the details when the job has ended."""
        shown = 0

        async def tail() -> None:
            nonlocal shown
            async for text in self._client.tail_job_logs(ray_job_id):
                show(text)
                shown += len(text)

        with self._request():
            asyncio.run(tail())
        details = self._wait_for_end(ray_job_id, LOG_END_SECONDS)
        # Ray closes the stream when the job has ended, sometimes before Ray has sent the last lines.
        if rest := self.logs(ray_job_id)[shown:]:
            show(rest)
        return details

    def stop(self, ray_job_id: str, seconds: float) -> JobDetails:
        """Ask a job to stop with a checkpoint, and kill it if it has not ended after `seconds`; return its details.

        Ray's stop request gives a job only 3 seconds. Therefore a second Ray job creates the file `stop` in the run
        directory. The training checks whether this file exists, and stops with a checkpoint.
        """
        details = self.describe(ray_job_id)
        if details.status.is_terminal():
            return details
        run = (details.metadata or {}).get("run")
        if run:
            with self._request():
                self._client.submit_job(entrypoint=shlex.join(["touch", f"{run}/stop"]))
            details = self._wait_for_end(ray_job_id, seconds)
        if not details.status.is_terminal():
            with self._request():
                self._client.stop_job(ray_job_id)
            details = self._wait_for_end(ray_job_id, KILL_SECONDS)
        return details

    def _wait_for_end(self, ray_job_id: str, seconds: float) -> JobDetails:
        """Wait until a job has ended, but at most for `seconds`, and return the details of the job."""
        deadline = time.monotonic() + seconds
        while not (details := self.describe(ray_job_id)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return details


def exit_status(details: JobDetails) -> int:
    """Return the exit status of the job's command, or 1 if the command could not be started."""
    return 0 if details.status == JobStatus.SUCCEEDED else details.driver_exit_code or 1
