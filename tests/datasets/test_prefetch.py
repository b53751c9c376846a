"""Work done ahead: in order, in bounded number, and no longer than someone takes the results."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from asymdiffrec.datasets.prefetch import prefetch


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_few_jobs_are_under_way(threads: int) -> None:
    drawn = taken = 0

    def job(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    def jobs() -> Iterator[Callable[[], int]]:
        nonlocal drawn
        for number in range(20):
            drawn += 1
            assert drawn - taken <= threads + 1
            yield partial(job, number)

    for expected, result in enumerate(prefetch(jobs(), threads)):
        assert result == expected
        taken += 1
    assert taken == 20


def test_a_job_that_fails_ends_the_work() -> None:
    done: list[int] = []

    def job(number: int) -> None:
        if number == 3:
            raise ValueError("third")
        done.append(number)

    with pytest.raises(ValueError, match="third"):
        list(prefetch((partial(job, number) for number in range(100)), 2))
    assert set(done) <= set(range(6))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
