"""Prefetching: results in order, a bounded number of jobs, and no thread left after an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from asymdiffrec.datasets.prefetch import prefetch


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_few_jobs_run_ahead(threads: int) -> None:
    started = consumed = 0

    def job(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    def jobs() -> Iterator[Callable[[], int]]:
        nonlocal started
        for number in range(20):
            started += 1
            assert started - consumed <= threads + 1
            yield partial(job, number)

    for expected, result in enumerate(prefetch(jobs(), threads)):
        assert result == expected
        consumed += 1
    assert consumed == 20


def test_a_job_that_fails_cancels_the_jobs_after_it() -> None:
    done: list[int] = []

    def job(number: int) -> None:
        if number == 3:
            raise ValueError("third")
        done.append(number)

    with pytest.raises(ValueError, match="third"):
        list(prefetch((partial(job, number) for number in range(100)), 2))
    assert set(done) <= set(range(6))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
