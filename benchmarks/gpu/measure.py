"""Measure time, memory and kernels of training steps, and compare them with the plan. On a CPU, measure only time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.embeddings.planner.devices import Cluster, find_device
from asymdiffrec.embeddings.planner.plan import solve
from asymdiffrec.trainer.fit.pipeline import build_pipeline
from asymdiffrec.trainer.train_state import TrainState, build_recommender, planning_problem
from benchmarks._clicks import Steps
from benchmarks._result import Result
from benchmarks.gpu.criteo import CriteoClicks

MAX_LOSS = 1e9
SHOWN_KERNELS = 40
GB = 1e9


def trained_steps(train_state: TrainState, batches: Sequence[Batch], guarded: bool = False) -> Steps:
    """Return a function that trains with our trainer.

    guarded: read each loss on the host before its backward pass, as the training loop does.
    """

    def may_learn(loss: torch.Tensor) -> bool:
        return not guarded or bool(loss.detach().abs() <= MAX_LOSS)

    training, stream = build_pipeline(train_state, may_learn), cycle(batches)
    return lambda: [training.progress(stream) for _ in batches]


def synchronize() -> None:
    """Wait until the GPU has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(steps: Steps) -> float:
    """Return the time of the steps in seconds, including the work of the GPU."""
    synchronize()
    start = time.perf_counter()
    steps()
    synchronize()
    return time.perf_counter() - start


def median_milliseconds(steps: Steps, count: int, rounds: int) -> float:
    """Return the median time of a step in milliseconds, over `rounds` rounds of `count` steps after a warm-up round."""
    seconds(steps)
    return 1e3 * statistics.median(seconds(steps) / count for _ in range(rounds))


def peak_memory(steps: Steps) -> dict[str, float]:
    """Return the peak GPU memory during the steps in GB: in total, without earlier allocations, and reserved by torch.

    Without a GPU the dict is empty.
    """
    if not torch.cuda.is_available():
        return {}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds(steps)
    peak = torch.cuda.max_memory_allocated()
    return {
        "peak_gb": peak / GB,
        "step_gb": (peak - before) / GB,
        "reserved_gb": torch.cuda.memory_reserved() / GB,
    }


def free_memory() -> None:
    """Free the GPU memory of models without references."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def kernel_times(steps: Steps, count: int, trace: Path) -> dict[str, Any]:
    """Return the GPU time per step of each kernel in milliseconds, averaged over `count` steps, longest first.

    Write a trace for Perfetto. Without a GPU the dict is empty and no trace is written.
    """
    if not torch.cuda.is_available():
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        wall = seconds(steps)
    profiler.export_chrome_trace(str(trace))
    events = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda event: -event.self_device_time_total)
    per_step = [[event.key[:120], event.count / count, event.self_device_time_total / 1e3 / count] for event in events]
    return {
        "wall_ms": 1e3 * wall / count,
        "kernels_ms": sum(milliseconds for *_, milliseconds in per_step),
        "kernels": per_step[:SHOWN_KERNELS],
    }


def planned(clicks: CriteoClicks, train_state: TrainState) -> dict[str, Any]:
    """Return the planned step time in milliseconds and the planned memory in GB.

    On a GPU there is a second planned step time. It uses the data sheet of the GPU instead of the measured speed.
    """
    plan, job = train_state.plan, train_state.job
    memory = plan["ranks"][0]["memory_bytes"] - plan["reserved_bytes"]
    document = {"device": plan["device"]["name"], "step_ms": plan["step_milliseconds"], "memory_gb": memory / GB}
    if clicks.device.type == "cuda":
        schema = job.to_schema()
        sheet = "h200" if "H200" in torch.cuda.get_device_name() else "h100"
        unsharded = build_recommender(job, schema, torch.device("meta"))
        solution = solve(planning_problem(job, schema, unsharded, Cluster(find_device(sheet), 1, 1)))
        document["step_ms_by_data_sheet"] = solution.step.milliseconds
    return document


def against_plan(name: str, milliseconds: float, peak: dict[str, float], plan: dict[str, Any]) -> list[Result]:
    """Compare measured step time and memory with the plan."""
    results = [Result(f"step of {name}", milliseconds, "ms", f"planned for {plan['device']}", plan["step_ms"])]
    if sheet := plan.get("step_ms_by_data_sheet"):
        results.append(Result(f"step of {name}", milliseconds, "ms", "planned by the data sheet", sheet))
    if peak:
        results.append(Result(f"peak memory of {name}", peak["peak_gb"], "GB", "planned", plan["memory_gb"]))
    return results
