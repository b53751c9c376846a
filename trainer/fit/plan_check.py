"""Compare a training with the prediction of its sharding plan: step time, and memory and load of each worker."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from asymdiffrec.base import gather_all


def memory_in_use(device: torch.device) -> int:
    """Return this worker's memory in bytes: on a CPU the resident memory, on a GPU the peak of allocated memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class ResourceUsage:
    """Memory and processor time of this worker since the object was created. Create it before the model."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory_before = memory_in_use(device)
        self._cpu_start = time.process_time()
        self.step_seconds: list[float] = []
        """Mean step time in seconds, for each interval between two lines of the log"""

    def restart_clock(self) -> None:
        """Restart counting processor time, because the time until now was not training."""
        self._cpu_start = time.process_time()

    def compare(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return planned and measured values, the same on all workers; None if no step was logged. A collective call.

        - `step_milliseconds`: measured is the median over the intervals of the log.
        - `memory_bytes` of each rank: planned excludes the plan's reserve. Measured is the increase since the model was
          built, on a GPU the increase of the peak.
        - `imbalance` is 1 - mean / max over the ranks. Planned uses the look-up time of each rank, measured the
          processor time of each worker; measured is None on GPUs.
        """
        usages = gather_all((memory_in_use(self._device) - self._memory_before, time.process_time() - self._cpu_start))
        if not self.step_seconds:
            return None
        planned = [rank["memory_bytes"] - plan["reserved_bytes"] for rank in plan["ranks"]]
        lookup_times = [rank["forward_milliseconds"] + rank["backward_milliseconds"] for rank in plan["ranks"]]
        cpu_times = [seconds for _, seconds in usages]
        return {
            "step_milliseconds": {
                "planned": plan["step_milliseconds"],
                "measured": 1000 * statistics.median(self.step_seconds),
            },
            "memory_bytes": [
                {"rank": rank, "planned": expected, "measured": memory}
                for rank, (expected, (memory, _)) in enumerate(zip(planned, usages, strict=True))
            ],
            "imbalance": {
                "planned": _imbalance(lookup_times),
                "measured": None if self._device.type == "cuda" else _imbalance(cpu_times),
            },
        }


def _imbalance(times: list[float]) -> float:
    return 1 - sum(times) / len(times) / max(times) if max(times) > 0 else 0.0


def describe_measured(measured: Mapping[str, Any]) -> str:
    """Return one line with measured and planned values from `ResourceUsage.compare`."""
    step, memory, imbalance = measured["step_milliseconds"], measured["memory_bytes"], measured["imbalance"]
    fullest = max(memory, key=lambda rank: rank["measured"])
    measured_imbalance = "" if imbalance["measured"] is None else f", imbalance {imbalance['measured']:.0%}"
    return (
        f"Measured (planned): step {step['measured']:.3g} ms ({step['planned']:.3g}), fullest rank "
        f"{fullest['measured'] / 1e9:.3g} GB ({fullest['planned'] / 1e9:.3g} without reserve)"
        + (f"{measured_imbalance} ({imbalance['planned']:.0%})" if measured_imbalance else "")
    )
