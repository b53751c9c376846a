"""Write a trace of a few training steps: what ran when, on the processor and on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import profiler

SKIPPED_STEPS = 10
"""Number of untypical steps at the start of a session: they allocate memory, compile and fill queues"""
PROFILER_WARMUP_STEPS = 3
"""Number of steps in which the profiler runs but discards its results, because its start slows down steps"""


class Profiler(Protocol):
    """Profiler hook: call `step` after each training step."""

    def step(self) -> None:
        """Record that a step has ended."""


class _NoProfiler:
    def step(self) -> None:
        pass


@contextmanager
def profile_steps(steps: int, file: Path) -> Iterator[Profiler]:
    """Trace `steps` steps of the block into a file for Perfetto or chrome://tracing.

    The trace starts after SKIPPED_STEPS + PROFILER_WARMUP_STEPS steps. No file is written if `steps` is 0, or if
    training ends before the trace starts.
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
