"""Measure a training step. All measurements use the same batches.

base is compared with bare TorchRec, plain PyTorch and FuxiCTR; each method with base, in time, operations and memory;
settings of the section `train` with their defaults.
"""

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
"""Settings of the section `train`. Each is measured without the others"""
MAX_TIME_OVER_OPERATIONS = 1.1
"""Goal: largest value of (time of a method / time of base) / (operations of the method / operations of base)"""
MIN_OVER_FUXICTR = 1.5
MAX_FORWARD_SHARE = 0.05
"""Goal: largest share of the forward process in the time of a step of asymdiff"""


class Measure:
    """Measurements of pairs of training loops, which take turns on the same batches."""

    def __init__(self, clicks: Clicks, batches: Sequence[Batch], rounds: int) -> None:
        self.clicks, self.batches, self.rounds = clicks, batches, rounds
        self.base, self.asymdiff = (clicks.ours(batches, method) for method in ("base", "asymdiff"))

    def milliseconds(self, first: Steps, second: Steps) -> tuple[float, float]:
        """Return the time of a step of each loop in milliseconds."""
        ours, theirs = alternate(first, second, self.rounds)
        return 1e3 * ours / len(self.batches), 1e3 * theirs / len(self.batches)

    def peer(self, name: str, steps: Steps, least: float | None = None) -> Result:
        """Compare the speed of base with a peer, in samples per second.

        `least` is the goal for the ratio, if not None.
        """
        ours, theirs = (1e3 * self.clicks.batch / duration for duration in self.milliseconds(self.base, steps))
        goal = ("", None) if least is None else (f"at least {least:g} times", ours >= least * theirs)
        return Result("training of base", ours, "samples/s", name, theirs, *goal)

    def method(self, method: str) -> Iterator[Result]:
        """Compare a step of a method with a step of base: time and operations."""
        ours, theirs = self.milliseconds(self.clicks.ours(self.batches, method), self.base)
        work, base_work = (self.clicks.operations(self.batches[0], name) for name in (method, "base"))
        goal = f"at most {MAX_TIME_OVER_OPERATIONS:g} times the ratio of operations"
        holds = ours / theirs <= MAX_TIME_OVER_OPERATIONS * work / base_work
        yield Result(f"step of {method}", ours, "ms", "base", theirs, goal, holds)
        yield Result(f"operations of a step of {method}", work / 1e9, "GFLOP", "base", base_work / 1e9)

    def memory(self) -> Result:
        """Compare the peak memory of a step of asymdiff and of base."""
        peaks = []
        for method in ("asymdiff", "base"):
            steps = self.clicks.ours(self.batches[:1], method)
            steps()
            peaks.append(peak_bytes(steps) / 2**20)
        return Result("peak memory of a step of asymdiff", peaks[0], "MiB", "base", peaks[1])

    def forward_process(self) -> Iterator[Result]:
        """Compare the time of the forward process and its backward pass with a step of asymdiff; measure its memory."""
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
        """Compare the time of a step of asymdiff with a setting and with its default."""
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
    """Run the program with the options of the command line, and print its results."""
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
