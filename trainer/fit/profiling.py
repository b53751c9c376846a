"""A trace of a few training steps: what ran when, on the processor and on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import profiler

BEFORE = 10
"""Steps of a run that are not traced: the first ones allocate, compile and fill queues"""
WARM = 3
"""Steps in which the profiler itself gets warm"""


class Trace(Protocol):
    """That is told of each step."""

    def step(self) -> None: ...


class _None:
    def step(self) -> None:
        pass


@contextmanager
def traced(steps: int, file: Path) -> Iterator[Trace]:
    """Write a trace of so many steps, after BEFORE + WARM others, to a file that Perfetto and chrome://tracing show.

    None is written where `steps` is 0, or where training ends before them.
    """
    if not steps:
        yield _None()
        return

    def write(found: profiler.profile) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(file))

    activities = [profiler.ProfilerActivity.CPU]
    activities += [profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    schedule = profiler.schedule(wait=BEFORE, warmup=WARM, active=steps, repeat=1)
    with profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as found:
        yield found
