"""Test AUC of AsymDiffRec against the base model with fields missing, over seeds: MovieLens-100K or synthetic data."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from rich.console import Console

from asymdiffrec.datasets.prepare.movielens import prepare_movielens
from asymdiffrec.datasets.prepare.synthetic import prepare_synthetic
from asymdiffrec.embeddings.quiet import quiet_torchrec
from asymdiffrec.trainer import drive
from asymdiffrec.trainer.job import read_job, read_learned
from asymdiffrec.trainer.restore import evaluate_run
from asymdiffrec.trainer.run import Run
from benchmarks._report import Result, arguments, show

SHARES = [0.0, 0.1, 0.3, 0.5, 0.7]


def measure(data: Path, run: Path, variant: str, seed: int, settings: list[str]) -> list[float]:
    """AUC of a trained variant on the test split, for each share of missing fields."""
    job = read_job(data / "job.yaml", [f"diffusion.variant={variant}", f"train.seed={seed}", *settings])
    silent = Console(quiet=True)
    drive.train(job, read_learned(job), Run(run), resume=False, console=silent)
    _, results = evaluate_run(run, "test", SHARES, silent)
    return [result["auc"] for result in results]


def main() -> None:
    quiet_torchrec()
    options = arguments(
        __doc__ or "",
        data={"type": Path, "help": "folder with MovieLens-100K's own files; synthetic data when left out"},
        seeds={"type": int, "default": 3, "help": "runs of each variant; each has its own split, weights and noise"},
    )
    settings = ["train.steps=20"] if options.quick else []
    aucs: dict[str, list[list[float]]] = {"base": [], "asymdiff": []}
    for seed in range(1 if options.quick else options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data"
            if options.data:
                prepare_movielens(data, input=options.data, seed=seed)
            else:
                prepare_synthetic(data, rows=20_000 if options.quick else 400_000, seed=seed)
            for variant, found in aucs.items():
                found.append(measure(data, Path(temporary) / variant, variant, seed, settings))
    results = []
    for share, base, ours in zip(
        SHARES, zip(*aucs["base"], strict=True), zip(*aucs["asymdiff"], strict=True), strict=True
    ):
        name = f"AUC, {share:.0%} missing, {len(ours)} seeds"
        mean, peer = statistics.mean(ours), statistics.mean(base)
        goal = "above on every seed" if share >= 0.3 else ""
        holds = all(mine > theirs for mine, theirs in zip(ours, base, strict=True)) if goal else None
        results.append(Result(name, mean, "", "base", peer, goal, holds))
    show(results, options.json)


if __name__ == "__main__":
    main()
