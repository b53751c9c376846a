"""Writes a trace of a few training steps: what ran when, on the processor and on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import profiler

SKIPPED_STEPS = 10
"""First steps of a session, which are not typical: they allocate memory, compile and fill queues"""
PROFILER_WARMUP_STEPS = 3
"""Steps in which the profiler runs and its results are thrown away, because starting it slows steps down"""


class Profiler(Protocol):
    """Has `step` called after each training step."""

    def step(self) -> None:
        """Record that a step has ended."""


class _NoProfiler:
    def step(self) -> None:
        pass


@contextmanager
def profile_steps(steps: int, file: Path) -> Iterator[Profiler]:
    """Trace `steps` steps, after SKIPPED_STEPS + PROFILER_WARMUP_STEPS others, into a file for Perfetto.

    No file is written if `steps` is 0 or training ends before the steps that are traced. chrome://tracing shows the
    file too.
    """
    if not steps:
        yield _NoProfiler()
        return

    def write(profile: profiler.profile) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(file))

    activities = [profiler.ProfilerActivity.CPU]
    activities += [profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    schedule = profiler.schedule(wait=SKIPPED_STEPS, warmup=PROFILER_WARMUP_STEPS, active=steps, repeat=1)
    with profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profile:
        yield profile
