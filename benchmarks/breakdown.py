"""Measure the share of each kind of operator in the time of a training step on the CPU, for us and bare TorchRec."""

from __future__ import annotations

import re
from collections import Counter

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from benchmarks._clicks import SMALL, Clicks, Steps
from benchmarks._report import arguments, show
from benchmarks._result import Result

PARTS = {
    "products": r"aten::(addmm|mm|bmm|linear)",
    "tables, backward and update": r"fbgemm::.*backward|.*(Lookup|lookup|codegen).*[Bb]ackward|.*[Bb]ackward.*codegen",
    "tables, look-up": r"fbgemm::|.*(lookup|Lookup|embedding_codegen)",
    "forward process": r"asymdiffrec::",
    "copies": r"aten::(copy_|cat|clone|contiguous|_to_copy|index|stack)$",
    "dense optimizer": r"Optimizer|aten::_foreach|aten::_fused",
    "sums and activations": r"aten::(relu|relu_|threshold_backward|clamp_min|sum|mul|add|add_|addcmul|amax|where|mean)",
}


def part_of(operator: str) -> str:
    """Return the part that a profiled operator belongs to."""
    return next((part for part, pattern in PARTS.items() if re.match(pattern, operator)), "other")


def shares(steps: Steps) -> Counter[str]:
    """Return the share of each part in the time of all operators.

    The time of an operator does not include the operators that it calls.
    """
    steps()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        steps()
    durations: Counter[str] = Counter()
    for event in profiler.key_averages():
        durations[part_of(event.key)] += event.self_cpu_time_total
    total = sum(durations.values())
    return Counter({part: time / total for part, time in durations.items() if time})


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    options = arguments(__doc__ or "")
    clicks = SMALL if options.quick else Clicks()
    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True):
        batches = clicks.batches(1 if options.quick else 5, clicks.batch)
        loops = {"bare TorchRec": clicks.bare_torchrec(batches)}
        loops |= {method: clicks.ours(batches, method) for method in ("base", "asymdiff")}
        results = [
            Result(f"{part}, {name}", share, "", "whole step", 1.0)
            for name, steps in loops.items()
            for part, share in shares(steps).most_common()
        ]
    show(results, options)


if __name__ == "__main__":
    main()
