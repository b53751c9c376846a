"""What training took beside what its plan said: memory and time of each worker."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch
import torch.distributed as dist


def held(device: torch.device) -> int:
    """Bytes that this worker holds; on a GPU the most that was allocated there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


class Gauge:
    """Memory and processor time of this worker, from when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = held(self._device)
        self._cpu = time.process_time()
        self.step_seconds: list[float] = []
        """Of a step, the mean of each interval between two logged ones"""

    def restart_clock(self) -> None:
        """Count processor time from now: what was before was no training."""
        self._cpu = time.process_time()

    def compared(self, plan: Mapping[str, Any]) -> dict[str, Any] | None:
        """The plan's figures and the measured ones, the same on all workers; None before a first logged step.

        `step_milliseconds` is the median of the logged intervals. `memory_bytes` of each rank are the plan's without
        its reserve, and what the worker holds more than before the model was built; on a GPU the most that was
        allocated. `imbalance` is 1 - mean / max over the ranks: of the plan, of the look-ups; as
        measured, of the processor time of the workers, None on GPUs. A collective call.
        """
        own = (held(self._device) - self._memory, time.process_time() - self._cpu)
        everywhere: list[tuple[int, float]] = [own] * dist.get_world_size()
        dist.all_gather_object(everywhere, own)
        if not self.step_seconds:
            return None
        busy = [seconds for _, seconds in everywhere]
        planned = [rank["memory_bytes"] - plan["reserved_bytes"] for rank in plan["ranks"]]
        tables = [rank["forward_ms"] + rank["backward_ms"] for rank in plan["ranks"]]
        return {
            "step_milliseconds": {
                "planned": plan["step_milliseconds"],
                "measured": 1000 * statistics.median(self.step_seconds),
            },
            "memory_bytes": [
                {"rank": rank, "planned": expected, "measured": held}
                for rank, (expected, (held, _)) in enumerate(zip(planned, everywhere, strict=True))
            ],
            "imbalance": {
                "planned": _imbalance(tables),
                "measured": None if self._device.type == "cuda" else _imbalance(busy),
            },
        }


def _imbalance(times: list[float]) -> float:
    return 1 - sum(times) / len(times) / max(times) if max(times) > 0 else 0.0


def describe_measured(measured: Mapping[str, Any]) -> str:
    """One line about the plan and what came of it."""
    step, memory, imbalance = measured["step_milliseconds"], measured["memory_bytes"], measured["imbalance"]
    fullest = max(memory, key=lambda rank: rank["measured"])
    spread = "" if imbalance["measured"] is None else f", imbalance {imbalance['measured']:.0%}"
    return (
        f"Measured (planned): step {step['measured']:.3g} ms ({step['planned']:.3g}), fullest rank "
        f"{fullest['measured'] / 1e9:.3g} GB ({fullest['planned'] / 1e9:.3g} without reserve)"
        + (f"{spread} ({imbalance['planned']:.0%})" if spread else "")
    )
