"""Measure training loops on one GPU.

base, asymdiff and bare TorchRec take turns on the same batches. Other sections measure a model whose tables fill most
of the GPU, and the optimizers of tables.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asymdiffrec.trainer.train_state import TrainState
from benchmarks._clicks import Steps
from benchmarks._result import Result
from benchmarks.gpu.criteo import CriteoClicks
from benchmarks.gpu.measure import (
    against_plan,
    free_memory,
    kernel_times,
    median_milliseconds,
    peak_memory,
    planned,
    seconds,
    trained_steps,
)
from benchmarks.gpu.outputs import Failure, Output


@dataclass
class Loop:
    """A training loop, its plan and its measurements."""

    steps: Steps
    plan: dict[str, Any] | None
    peak: dict[str, float]
    durations: list[float] = field(default_factory=list)
    """Seconds per step, for each round"""

    @property
    def milliseconds(self) -> float:
        """Median time of a step over all rounds"""
        return 1e3 * statistics.median(self.durations)


def turns(clicks: CriteoClicks, quick: bool, traces: Path) -> Iterator[Output]:
    """Compare base with bare TorchRec, asymdiff with base, and each loop with its plan."""
    rounds, count = (1, 2) if quick else (7, 8)
    batches = clicks.batches(count, clicks.batch)
    yield {"table_gb": clicks.table_bytes / 1e9, "batch": clicks.batch, "batches": count}
    compiled = clicks.device.type == "cuda"

    def of_method(method: str, guarded: bool) -> Callable[[], tuple[Steps, TrainState | None]]:
        def make() -> tuple[Steps, TrainState | None]:
            train_state = clicks.build(clicks.job(method))
            return trained_steps(train_state, batches, guarded), train_state

        return make

    makers: dict[str, Callable[[], tuple[Steps, TrainState | None]]] = {
        "base": of_method("base", guarded=False),
        "asymdiff": of_method("asymdiff", guarded=False),
        "asymdiff, guarded": of_method("asymdiff", guarded=True),
        "bare TorchRec": lambda: (clicks.bare_torchrec(batches), None),
        "bare TorchRec, compiled": lambda: (clicks.bare_torchrec(batches, compiled), None),
    }
    loops: dict[str, Loop] = {}
    for name, make in makers.items():
        try:
            start = time.perf_counter()
            steps, train_state = make()
            built = time.perf_counter() - start
            first = seconds(steps)  # compiles the model
            loop = Loop(steps, planned(clicks, train_state) if train_state else None, peak_memory(steps))
            loops[name] = loop
            yield {"loop": name, "build_s": built, "first_steps_s": first, **loop.peak, "plan": loop.plan}
        except Exception as error:
            yield Failure.of(name, error)
    for _ in range(rounds):
        for loop in loops.values():
            loop.durations.append(seconds(loop.steps) / count)
    for name, loop in loops.items():
        spread = [1e3 * min(loop.durations), 1e3 * max(loop.durations)]
        yield {"loop": name, "ms": loop.milliseconds, "spread_ms": spread}
    yield from compared(clicks, loops)
    for name, loop in loops.items():
        trace = traces / f"{name.replace(', ', '-').replace(' ', '-')}.json.gz"
        try:
            yield {"profile": name, **kernel_times(loop.steps, count, trace)}
        except Exception as error:
            yield Failure.of(f"profile of {name}", error)


def compared(clicks: CriteoClicks, loops: dict[str, Loop]) -> Iterator[Result]:
    """Yield the comparisons of each loop with another loop or with its plan."""
    for peer in ("bare TorchRec", "bare TorchRec, compiled"):
        if loops.keys() >= {"base", peer}:
            rates = [1e3 * clicks.batch / loops[name].milliseconds for name in ("base", peer)]
            yield Result("training of base", rates[0], "samples/s", peer, rates[1])
    for name, peer in (("asymdiff", "base"), ("asymdiff, guarded", "asymdiff")):
        if loops.keys() >= {name, peer}:
            yield Result(f"step of {name}", loops[name].milliseconds, "ms", peer, loops[peer].milliseconds)
            if loops[name].peak:
                peaks = [loops[loop].peak["step_gb"] for loop in (name, peer)]
                yield Result(f"memory that a step of {name} adds", peaks[0], "GB", peer, peaks[1])
    for name, loop in loops.items():
        if loop.plan:
            yield from against_plan(name, loop.milliseconds, loop.peak, loop.plan)


def capacity(clicks: CriteoClicks, quick: bool, traces: Path) -> Iterator[Output]:
    """Measure a step of asymdiff with tables that fill most of the GPU, and compare it with its plan."""
    rounds, count = (1, 2) if quick else (5, 8)
    batches = clicks.batches(count, clicks.batch)
    start = time.perf_counter()
    train_state = clicks.build(clicks.job("asymdiff"))
    steps = trained_steps(train_state, batches, guarded=True)
    yield {"table_gb": clicks.table_bytes / 1e9, "build_s": time.perf_counter() - start}
    milliseconds = median_milliseconds(steps, count, rounds)
    peak, plan = peak_memory(steps), planned(clicks, train_state)
    yield {"ms": milliseconds, "samples_per_second": 1e3 * clicks.batch / milliseconds, **peak, "plan": plan}
    size = f"{clicks.table_bytes / 1e9:.2g} GB of tables"
    yield from against_plan(f"asymdiff, {size}", milliseconds, peak, plan)


def optimizers(clicks: CriteoClicks, quick: bool, traces: Path) -> Iterator[Output]:
    """Compare a step of base with Adagrad on fp32 tables and with other optimizers and dtypes of tables."""
    rounds, count = (1, 2) if quick else (5, 8)
    batches = clicks.batches(count, clicks.batch)
    tables: dict[str, dict[str, Any]] = {
        "adagrad": {},
        "rowwise_adagrad": {"optimizer": {"name": "rowwise_adagrad"}},
        "sgd": {"optimizer": {"name": "sgd"}},
        "adagrad, fp16": {"dtype": "fp16"},
    }
    if clicks.device.type == "cuda":  # FBGEMM has no Adam on the CPU
        tables["adam"] = {"optimizer": {"name": "adam"}}
    milliseconds: dict[str, float] = {}
    for name, section in tables.items():
        try:
            train_state = clicks.build(clicks.job("base", section))
            steps = trained_steps(train_state, batches)
            milliseconds[name] = median_milliseconds(steps, count, rounds)
            plan = planned(clicks, train_state)
            yield {"optimizer": name, "ms": milliseconds[name], "plan": plan, **peak_memory(steps)}
            if name != "adagrad":
                yield Result(f"step of base, {name}", milliseconds[name], "ms", "adagrad", milliseconds["adagrad"])
        except Exception as error:
            yield Failure.of(name, error)
        steps = train_state = None  # type: ignore[assignment]  # the next model needs their memory
        free_memory()
