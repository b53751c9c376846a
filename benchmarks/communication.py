"""Test AUC of two workers that send each other embeddings in fp16 beside fp32, over seeds."""

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

WITHIN = 1e-3


def compare(half: np.ndarray, full: np.ndarray) -> list[Result]:
    """Mean AUCs of the two, from those of each seed and share, [seeds, shares]."""
    return [
        Result(
            f"AUC, fp16 between workers, {share:.0%} missing",
            float(ours),
            "",
            "fp32",
            float(theirs),
            f"at most {WITHIN:g} below",
            bool(ours >= theirs - WITHIN),
        )
        for share, ours, theirs in zip(SHARES, half.mean(axis=0), full.mean(axis=0), strict=True)
    ]


def main() -> None:
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "",
        data={"type": Path, "help": "folder with MovieLens-100K's own files; synthetic data when left out"},
        seeds={"type": int, "default": 3, "help": "runs of each; each has its own split, weights and noise"},
    )
    quick = ["train.steps=3", "cluster.workers=1"] if options.quick else ["cluster.workers=2"]
    found: dict[str, list[list[float]]] = {"fp16": [], "fp32": []}
    for seed in range(1 if options.quick else options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data"
            if options.data:
                prepare_movielens(data, input=options.data, seed=seed)
            else:
                prepare_synthetic(data, rows=5_000 if options.quick else 100_000, seed=seed)
            for dtype, aucs in found.items():
                settings = [f"tables.communication={dtype}", *quick]
                aucs.append(measure(data, Path(temporary) / dtype, "asymdiff", seed, settings))
    results = compare(*(np.array(aucs) for aucs in found.values()))
    show(results, options)


if __name__ == "__main__":
    main()
