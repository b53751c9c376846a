"""A training step: the base model beside bare TorchRec, plain PyTorch and FuxiCTR, each variant beside base in time,
operations and memory, and the settings of the section train beside their defaults; on the same batches."""

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

VARIANTS = ("dropout", "augment", "asymdiff")
SETTINGS: tuple[dict[str, object], ...] = (
    {"compile": True},
    {"precision": "bf16"},
    {"clip_norm": 1.0},
    {"accumulate": 4},
)
"""Of the section train, one at a time"""
OVER_OPERATIONS = 1.1
"""Of asymdiff over base: what the ratio of their times may be of that of their operations"""
OVER_FUXICTR = 1.5
FORWARD_SHARE = 0.05


class Measure:
    """Pairs of functions that train on the same batches, in turn."""

    def __init__(self, clicks: Clicks, batches: Sequence[Batch], rounds: int) -> None:
        self.clicks, self.batches, self.rounds = clicks, batches, rounds
        self.base, self.asymdiff = (clicks.ours(batches, variant) for variant in ("base", "asymdiff"))

    def milliseconds(self, first: Steps, second: Steps) -> tuple[float, float]:
        """Of a step of each."""
        ours, theirs = alternate(first, second, self.rounds)
        return 1e3 * ours / len(self.batches), 1e3 * theirs / len(self.batches)

    def peer(self, name: str, steps: Steps, least: float | None = None) -> Result:
        """Samples a second of base beside those of a peer."""
        ours, theirs = (1e3 * self.clicks.batch / taken for taken in self.milliseconds(self.base, steps))
        goal = ("", None) if least is None else (f"at least {least:g} times", ours >= least * theirs)
        return Result("training of base", ours, "samples/s", name, theirs, *goal)

    def variant(self, variant: str) -> Iterator[Result]:
        ours, theirs = self.milliseconds(self.clicks.ours(self.batches, variant), self.base)
        work, base_work = (self.clicks.operations(self.batches[0], one) for one in (variant, "base"))
        goal = f"at most {OVER_OPERATIONS:g} times that of operations"
        holds = ours / theirs <= OVER_OPERATIONS * work / base_work
        yield Result(f"step of {variant}", ours, "ms", "base", theirs, goal, holds)
        yield Result(f"operations of a step of {variant}", work / 1e9, "GFLOP", "base", base_work / 1e9)

    def memory(self) -> Result:
        one = self.batches[:1]
        taken = []
        for variant in ("asymdiff", "base"):
            steps = self.clicks.ours(one, variant)
            steps()
            taken.append(peak_bytes(steps) / 2**20)
        return Result("peak memory of a step of asymdiff", taken[0], "MiB", "base", taken[1])

    def forward_process(self) -> Iterator[Result]:
        clicks, batch = self.clicks, self.batches[0]
        process = ForwardProcess(FieldLayout.from_widths([clicks.dim] * clicks.fields), ForwardConfig(), seed=1)
        clean = torch.randn(clicks.batch, clicks.fields * clicks.dim, requires_grad=True)
        noisy, step = process(clean, batch.missing, batch.sample_index)
        upstream = torch.ones_like(noisy)

        def both() -> None:
            for _ in self.batches:
                torch.autograd.grad(process(clean, batch.missing, batch.sample_index)[0], clean, upstream)

        ours, whole = self.milliseconds(both, self.asymdiff)
        goal = f"at most {FORWARD_SHARE:g}"
        yield Result(
            "forward process, and back", ours, "ms", "step of asymdiff", whole, goal, ours <= FORWARD_SHARE * whole
        )
        taken = peak_bytes(lambda: process(clean, batch.missing, batch.sample_index)) / 2**20
        results = (noisy.nbytes + step.nbytes) / 2**20
        yield Result(
            "forward process, memory", taken, "MiB", "its results", results, "below 2 times", taken < 2 * results
        )

    def setting(self, settings: dict[str, object]) -> Result:
        (what,) = (f"{key}={value}" for key, value in settings.items())
        ours, theirs = self.milliseconds(self.clicks.ours(self.batches, "asymdiff", **settings), self.asymdiff)
        return Result(f"step of asymdiff, {what}", ours, "ms", "default", theirs)


def measured(quick: bool, fuxictr: Path | None) -> Iterator[Result]:
    clicks = SMALL if quick else Clicks()
    count, rounds = (1, 1) if quick else (5, 7)
    batches = clicks.batches(count, clicks.batch)
    measure = Measure(clicks, batches, rounds)
    yield measure.peer("bare TorchRec", clicks.bare_torchrec(batches), 1)
    yield measure.peer("torch's EmbeddingBag", clicks.plain_torch(batches))
    with fuxictr_dnn(fuxictr, clicks, batches) if fuxictr else nullcontext() as steps:
        if steps:
            yield measure.peer("FuxiCTR's DNN", steps, OVER_FUXICTR)
    for variant in VARIANTS:
        yield from measure.variant(variant)
    yield measure.memory()
    yield from measure.forward_process()
    for settings in SETTINGS:
        if not (quick and "compile" in settings):
            yield measure.setting(settings)


def main() -> None:
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "", fuxictr={"type": Path, "metavar": "PYTHON", "help": "a Python that has FuxiCTR, to compare with"}
    )
    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True):
        results = list(measured(options.quick, options.fuxictr))
    show(results, options)


if __name__ == "__main__":
    main()
