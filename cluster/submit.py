"""Ray jobs: this package and a job file go to a cluster, and its log comes back."""

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

POLL = 1.0
"""Seconds between two looks at a job that is to end"""
LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Of Ray, which tell of every package and of every connection"""


@dataclass(frozen=True)
class Submission:
    """What a job is made of."""

    arguments: Sequence[str]
    """Of the command `asymdiffrec`, which runs where `files` are"""
    files: Mapping[str, str]
    """Texts, by the names of their files"""
    modules: Sequence[Path] = ()
    """Folders of Python modules, and wheels, that it imports beside this package"""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Jobs:
    """The jobs of a cluster, by the URL of its job server such as http://127.0.0.1:8265, or that in RAY_ADDRESS.

    Every method raises ClusterError where the cluster does not answer, or refuses.
    """

    def __init__(self, address: str | None) -> None:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._address = address or "the cluster of RAY_ADDRESS"
        with self._asked():
            self._client = JobSubmissionClient(address)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """One line for what goes wrong with a request."""
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
        """Start a job; its id. The cluster needs what this package depends on, not the package."""
        package = Path(asymdiffrec.__file__).parent
        with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as folder:
            for name, text in submission.files.items():
                Path(folder, name).write_text(text)
            with self._asked():
                job: str = self._client.submit_job(
                    entrypoint=shlex.join(["python", "-m", "asymdiffrec", *submission.arguments]),
                    runtime_env={"working_dir": folder, "py_modules": [str(package), *map(str, submission.modules)]},
                    metadata=dict(submission.metadata),
                )
        return job

    def describe(self, job: str) -> JobDetails:
        with self._asked():
            return self._client.get_job_info(job)

    def logs(self, job: str) -> str:
        """What the job has printed so far."""
        with self._asked():
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, show: Callable[[str], None]) -> JobDetails:
        """Pass on what the job prints, from its start, until it ends; how it ended."""

        shown = 0

        async def tail() -> None:
            nonlocal shown
            async for text in self._client.tail_job_logs(job):
                show(text)
                shown += len(text)

        with self._asked():
            asyncio.run(tail())
        details = self._ended(job, seconds=60)
        # Ray closes the stream once the job has ended, at times before it has passed on the last lines.
        if rest := self.logs(job)[shown:]:
            show(rest)
        return details

    def stop(self, job: str, seconds: float) -> JobDetails:
        """Ask a job to stop with a checkpoint, and end it where it has not done so in some seconds; how it ended.

        Ray itself gives a job 3 seconds. So its training is asked by a file in its run directory, by another job.
        """
        details = self.describe(job)
        if details.status.is_terminal():
            return details
        run = (details.metadata or {}).get("run")
        if run:
            with self._asked():
                self._client.submit_job(entrypoint=shlex.join(["touch", f"{run}/stop"]))
            details = self._ended(job, seconds)
        if not details.status.is_terminal():
            with self._asked():
                self._client.stop_job(job)
            details = self._ended(job, seconds=30)
        return details

    def _ended(self, job: str, seconds: float) -> JobDetails:
        """What is known of a job once it has ended, or after some seconds."""
        end = time.monotonic() + seconds
        while not (details := self.describe(job)).status.is_terminal() and time.monotonic() < end:
            time.sleep(POLL)
        return details


def exit_status(details: JobDetails) -> int:
    """That of the job's command; 1 where it has none, as one that could not be started."""
    return 0 if details.status == JobStatus.SUCCEEDED else details.driver_exit_code or 1
