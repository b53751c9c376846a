"""Bytes that tensors on the CPU take while a function runs."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object]) -> int:
    """The most that was allocated at once beyond what there was before, as torch's profiler tells of its allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    held = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
