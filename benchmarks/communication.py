"""Compare the test AUC of two workers that exchange embeddings in fp16 with the test AUC in fp32, over seeds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from asymdiffrec.datasets.prepare.movielens.dataset import prepare_movielens
from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from benchmarks._report import arguments, show
from benchmarks._result import Result
from benchmarks.quality import SHARES, measure

MAX_AUC_LOSS = 1e-3
"""Goal: largest loss of AUC by fp16"""


def compare(half: np.ndarray, full: np.ndarray) -> list[Result]:
    """Compare the mean AUC with fp16 and with fp32, for each share of missing fields.

    half, full: the AUC with fp16 and fp32 for each seed and share, [seeds, shares].
    """
    return [
        Result(
            f"AUC, fp16 between workers, {share:.0%} missing",
            float(ours),
            "",
            "fp32",
            float(theirs),
            f"at most {MAX_AUC_LOSS:g} below",
            bool(ours >= theirs - MAX_AUC_LOSS),
        )
        for share, ours, theirs in zip(SHARES, half.mean(axis=0), full.mean(axis=0), strict=True)
    ]


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "",
        data={"type": Path, "help": "folder with the files of MovieLens-100K; default: synthetic data"},
        seeds={"type": int, "default": 3, "help": "runs of each type; split, weights and noise differ between seeds"},
    )
    quick = ["train.steps=3", "cluster.workers=1"] if options.quick else ["cluster.workers=2"]
    aucs: dict[str, list[list[float]]] = {"fp16": [], "fp32": []}
    for seed in range(1 if options.quick else options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data"
            if options.data:
                prepare_movielens(data, input=options.data, seed=seed)
            else:
                prepare_synthetic(data, rows=5_000 if options.quick else 100_000, seed=seed)
            for dtype, by_seed in aucs.items():
                overrides = [f"tables.communication={dtype}", *quick]
                by_seed.append(measure(data, Path(temporary) / dtype, "asymdiff", seed, overrides))
    results = compare(*(np.array(by_seed) for by_seed in aucs.values()))
    show(results, options)


if __name__ == "__main__":
    main()
