"""Compare the test AUC of asymdiff and base with missing fields, over seeds, on MovieLens-100K or synthetic data."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from asymdiffrec.datasets.files.documents import read_yaml, validate
from asymdiffrec.datasets.prepare.movielens.dataset import prepare_movielens
from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.evaluation.scenarios import drop_at_random
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.inference.evaluate_run import evaluate_run
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run
from benchmarks._report import arguments, show
from benchmarks._result import Result

SHARES = (0.0, 0.1, 0.3, 0.5, 0.7)
MOVIELENS_GOAL = 0.778
FUXICTR_DNN = 0.7775
"""AUC of FuxiCTR's DNN on a random split of MovieLens-100K"""
MAX_BELOW_OPTIMUM = 0.01


def measure(data: Path, run: Path, method: str, seed: int, overrides: list[str]) -> list[float]:
    """Train a method; return its test AUC for each share of missing fields in SHARES."""
    job = read_job(data / "job.yaml", [f"diffusion.method={method}", f"train.seed={seed}", *overrides])
    silent = Console(quiet=True)
    train_job(job, read_statistics(job), Run(run), console=silent)
    results = evaluate_run(
        run, "test", lambda schema: [drop_at_random(share, schema) for share in SHARES], silent
    ).results
    return [result["auc"] for result in results]


def compare(base: np.ndarray, ours: np.ndarray) -> Iterator[Result]:
    """Compare the mean AUC of asymdiff and base for each share of missing fields.

    base, ours: the AUC for each seed and share, [seeds, shares].
    """
    for share, theirs, mine in zip(SHARES, base.T, ours.T, strict=True):
        goal = "above on every seed" if share >= 0.3 else ""
        holds = bool((mine > theirs).all()) if goal else None
        yield Result(f"AUC of asymdiff, {share:.0%} missing", mine.mean(), "", "base", theirs.mean(), goal, holds)


def against_fuxictr(method: str, auc: float) -> Result:
    """Compare an AUC on MovieLens-100K with the AUC of FuxiCTR's DNN."""
    holds = bool(auc >= MOVIELENS_GOAL)
    goal = f"at least {MOVIELENS_GOAL}"
    return Result(f"AUC of {method}, 0% missing", auc, "", "a FuxiCTR DNN", FUXICTR_DNN, goal, holds)


def against_optimum(auc: float, optimum: float) -> Result:
    """Compare an AUC on synthetic data with the best possible AUC."""
    holds = bool(optimum - auc <= MAX_BELOW_OPTIMUM)
    goal = f"at most {MAX_BELOW_OPTIMUM} below"
    return Result("AUC of asymdiff, 0% missing", auc, "", "the optimum", optimum, goal, holds)


def prepare_by(recipe: Path, folder: Path, out: Path, seed: int) -> None:
    """Prepare the files of a folder with a recipe. The file names in the recipe are relative to the folder."""
    with contextlib.chdir(folder):
        prepare_table(out, validate(Recipe, {**read_yaml(str(recipe)), "seed": seed}, str(recipe)))


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "",
        data={"type": Path, "help": "folder with the files of MovieLens-100K; default: synthetic data"},
        recipe={"type": Path, "help": "recipe of `prepare table` for --data, instead of `prepare movielens-100k`"},
        seeds={"type": int, "default": 3, "help": "runs of each method; split, weights and noise differ between seeds"},
    )
    overrides = ["train.steps=3"] if options.quick else []
    aucs: dict[str, list[list[float]]] = {"base": [], "asymdiff": []}
    optima = []
    for seed in range(1 if options.quick else options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            data = Path(temporary) / "data"
            if options.recipe:
                prepare_by(options.recipe.resolve(), options.data, data, seed)
            elif options.data:
                prepare_movielens(data, input=options.data, seed=seed)
            else:
                profile = prepare_synthetic(data, rows=5_000 if options.quick else 400_000, seed=seed)
                optima.append(profile["optimal_auc"]["observed"])
            for method, by_seed in aucs.items():
                by_seed.append(measure(data, Path(temporary) / method, method, seed, overrides))
    base, ours = (np.array(by_seed) for by_seed in aucs.values())
    results = list(compare(base, ours))
    if options.data:
        results += [against_fuxictr("base", base[:, 0].mean()), against_fuxictr("asymdiff", ours[:, 0].mean())]
    else:
        results.append(against_optimum(ours[:, 0].mean(), np.mean(optima)))
    show(results, options)


if __name__ == "__main__":
    main()
