"""A training step: base beside bare TorchRec, plain PyTorch and FuxiCTR; each method beside base in time, operations
and memory; settings of the section train beside their defaults. All on the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.diffusion.forward import ForwardConfig, ForwardProcess
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.field_layout import FieldLayout
from benchmarks._clicks import SMALL, Clicks, Steps
from benchmarks._fuxictr import fuxictr_dnn
from benchmarks._memory import peak_bytes
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result

METHODS = ("dropout", "augment", "asymdiff")
SETTINGS: tuple[dict[str, object], ...] = (
    {"compile": True},
    {"precision": "bf16"},
    {"clip_norm": 1.0},
    {"accumulate": 4},
)
"""Settings of the section train; each is measured alone"""
MAX_TIME_OVER_OPERATIONS = 1.1
"""Largest ratio of a method's time to that of base, over the ratio of their operations"""
MIN_OVER_FUXICTR = 1.5
MAX_FORWARD_SHARE = 0.05
"""Largest share of the forward process in a step of asymdiff"""


class Measure:
    """Times pairs of training loops on the same batches, in turn."""

    def __init__(self, clicks: Clicks, batches: Sequence[Batch], rounds: int) -> None:
        self.clicks, self.batches, self.rounds = clicks, batches, rounds
        self.base, self.asymdiff = (clicks.ours(batches, method) for method in ("base", "asymdiff"))

    def milliseconds(self, first: Steps, second: Steps) -> tuple[float, float]:
        """Return the milliseconds of a step of each."""
        ours, theirs = alternate(first, second, self.rounds)
        return 1e3 * ours / len(self.batches), 1e3 * theirs / len(self.batches)

    def peer(self, name: str, steps: Steps, least: float | None = None) -> Result:
        """Return samples per second of base beside those of a peer; `least` is the goal for their ratio."""
        ours, theirs = (1e3 * self.clicks.batch / duration for duration in self.milliseconds(self.base, steps))
        goal = ("", None) if least is None else (f"at least {least:g} times", ours >= least * theirs)
        return Result("training of base", ours, "samples/s", name, theirs, *goal)

    def method(self, method: str) -> Iterator[Result]:
        """Yield time and operations of a method's step beside those of base."""
        ours, theirs = self.milliseconds(self.clicks.ours(self.batches, method), self.base)
        work, base_work = (self.clicks.operations(self.batches[0], name) for name in (method, "base"))
        goal = f"at most {MAX_TIME_OVER_OPERATIONS:g} times that of operations"
        holds = ours / theirs <= MAX_TIME_OVER_OPERATIONS * work / base_work
        yield Result(f"step of {method}", ours, "ms", "base", theirs, goal, holds)
        yield Result(f"operations of a step of {method}", work / 1e9, "GFLOP", "base", base_work / 1e9)

    def memory(self) -> Result:
        """Return the peak memory of a step of asymdiff beside that of base."""
        peaks = []
        for method in ("asymdiff", "base"):
            steps = self.clicks.ours(self.batches[:1], method)
            steps()
            peaks.append(peak_bytes(steps) / 2**20)
        return Result("peak memory of a step of asymdiff", peaks[0], "MiB", "base", peaks[1])

    def forward_process(self) -> Iterator[Result]:
        """Yield time and memory of the forward process, with its backward pass, beside a step of asymdiff."""
        clicks, batch = self.clicks, self.batches[0]
        process = ForwardProcess(FieldLayout.from_widths([clicks.dim] * clicks.fields), ForwardConfig(), seed=1)
        clean = torch.randn(clicks.batch, clicks.fields * clicks.dim, requires_grad=True)
        noisy, mask = process(clean, batch.missing, batch.sample_index)
        upstream = torch.ones_like(noisy)

        def forward_and_backward() -> None:
            for _ in self.batches:
                torch.autograd.grad(process(clean, batch.missing, batch.sample_index)[0], clean, upstream)

        ours, whole = self.milliseconds(forward_and_backward, self.asymdiff)
        goal = f"at most {MAX_FORWARD_SHARE:g}"
        yield Result(
            "forward process, and back", ours, "ms", "step of asymdiff", whole, goal, ours <= MAX_FORWARD_SHARE * whole
        )
        peak = peak_bytes(lambda: process(clean, batch.missing, batch.sample_index)) / 2**20
        results = (noisy.nbytes + mask.nbytes) / 2**20
        yield Result(
            "forward process, memory", peak, "MiB", "its results", results, "below 2 times", peak < 2 * results
        )

    def setting(self, settings: dict[str, object]) -> Result:
        """Return the time of a step of asymdiff with a setting beside that with its default."""
        (name,) = (f"{key}={value}" for key, value in settings.items())
        ours, theirs = self.milliseconds(self.clicks.ours(self.batches, "asymdiff", **settings), self.asymdiff)
        return Result(f"step of asymdiff, {name}", ours, "ms", "default", theirs)


def measure_all(quick: bool, fuxictr: Path | None) -> Iterator[Result]:
    """Yield all results."""
    clicks = SMALL if quick else Clicks()
    count, rounds = (1, 1) if quick else (5, 7)
    batches = clicks.batches(count, clicks.batch)
    measure = Measure(clicks, batches, rounds)
    yield measure.peer("bare TorchRec", clicks.bare_torchrec(batches), 1)
    yield measure.peer("torch's EmbeddingBag", clicks.plain_torch(batches))
    with fuxictr_dnn(fuxictr, clicks, batches) if fuxictr else nullcontext() as steps:
        if steps:
            yield measure.peer("FuxiCTR's DNN", steps, MIN_OVER_FUXICTR)
    for method in METHODS:
        yield from measure.method(method)
    yield measure.memory()
    yield from measure.forward_process()
    for settings in SETTINGS:
        if not (quick and "compile" in settings):
            yield measure.setting(settings)


def main() -> None:
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "",
        fuxictr={"type": Path, "metavar": "PYTHON", "help": "Python of an environment with FuxiCTR"},
    )
    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True):
        results = list(measure_all(options.quick, options.fuxictr))
    show(results, options)


if __name__ == "__main__":
    main()
