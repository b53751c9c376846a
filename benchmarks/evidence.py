"""Compare every variant and rival on five data sets, over seeds, with fields missing.

The comparison of each data set is written to results/evidence/. `--report` writes docs/evidence.md from
these comparisons.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from asymdiffrec.cluster.parallel_tasks import run_in_parallel
from asymdiffrec.datasets.files.documents import read_yaml
from asymdiffrec.datasets.prepare.movielens.dataset import prepare_movielens
from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.datasets.prepare.table.dataset import prepare_table
from asymdiffrec.datasets.prepare.table.recipe import Recipe
from asymdiffrec.datasets.prepare.write_dataset import write_dataset
from asymdiffrec.datasets.statistics.statistics import MAX_KNOTS
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.evaluation.scenarios import ScenarioOptions
from asymdiffrec.trainer.experiments.document import make_document
from asymdiffrec.trainer.experiments.running import run_task
from asymdiffrec.trainer.experiments.tasks import make_tasks
from asymdiffrec.trainer.experiments.tune import Tuning, tune, write_result
from asymdiffrec.trainer.experiments.variants import Variant, parse_variants
from benchmarks._evidence_report import write_report
from benchmarks._report import arguments, machine, show, versions
from benchmarks._result import Result

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "evidence"
SHARES = (0.0, 0.1, 0.3, 0.5, 0.7)
TREES = ("benchmarks.rivals.boosting:boosting", "benchmarks.rivals.boosting:boosting_dropped")
NETWORKS = ("benchmarks.rivals.autoencoder:Autoencoder", "benchmarks.rivals.contrastive:Contrastive")
RIVALS = ("base", "indicators", "mean", "dropout", "augment", *TREES, *NETWORKS, "gaussian")
PARTS = ("with_recon", "no_aux", "no_distil", "no_mask", "no_gate")
PUBLISHED = ("published", "no_recon", "let_through", "symmetric")
FEW = (*RIVALS, "asymdiff", "no_aux", "published")
REFERENCES = ("base", "augment", "boosting_dropped", "asymdiff")
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Study:
    """A data set, and the variants that are compared on it."""

    title: str
    prepare: Callable[[Path, Path], Any]
    """Function (folder to write, folder of raw data) that prepares the data set"""
    variants: tuple[str, ...] = (*RIVALS, "asymdiff", *PARTS, *PUBLISHED)
    seeds: int = 5
    outages: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    """Overrides PATH=VALUE for all variants that are networks"""
    tuning_minutes: float = 0
    """Time for `tune`. Its choice becomes the variant `tuned`; 0: no tuning"""


def _movielens(out: Path, data: Path, split: Any = "random") -> None:
    prepare_movielens(out, input=data / "movielens-100k", split=split)


def _with_gaps(out: Path, data: Path, share: float = 0.2) -> None:
    """Prepare MovieLens with fields missing at random in all splits."""
    whole = out.with_name(f"{out.name}-whole")
    _movielens(whole, data)
    job = read_yaml(str(whole / "job.yaml"))
    fields, rng = job["fields"], np.random.default_rng(0)
    names = {field.get("column", name) for name, field in fields.items()} - {job["data"]["user"]}

    def gaps(split: str) -> Iterator[pa.Table]:
        table = pq.read_table(whole / split)
        for name in table.column_names:
            if name in names:
                missing = pa.array(rng.random(len(table)) < share)
                column = pc.if_else(missing, pa.scalar(None, table.schema.field(name).type), table[name])
                table = table.set_column(table.column_names.index(name), name, column)
        yield table

    write_dataset(out, {split: gaps(split) for split in SPLITS}, job)


def _adult(out: Path, data: Path) -> None:
    files = data / "adult"
    prepare_table(
        out,
        Recipe.model_validate(
            {
                "name": "adult",
                "input": {"files": str(files / "adult.data")},
                "label": {"column": "classification", "positive": [">50K", ">50K."]},
                "split": {"test": [str(files / "adult.test")]},
            }
        ),
    )


STUDIES = {
    "movielens": Study("MovieLens-100K, random split", _movielens, outages=("user", "item")),
    "movielens-temporal": Study(
        "MovieLens-100K, split by time",
        partial(_movielens, split="time"),
        FEW,
        seeds=8,
        unseen=("user_id",),
        tuning_minutes=20,
    ),
    "movielens-gaps": Study("MovieLens-100K, 20 % of the fields missing in training too", _with_gaps, FEW),
    # Single values of some numeric fields matter, and the trees of the rivals have 255 bins. Chosen on validation rows.
    "adult": Study("Adult (UCI)", _adult, overrides=(f"tables.numeric_bins={MAX_KNOTS}",)),
    "synthetic": Study(
        "Synthetic click log with a known optimum",
        lambda out, data: prepare_synthetic(out, rows=200_000),
        (
            "benchmarks.rivals.oracle:oracle",
            *(name for name in FEW if name not in ("indicators", "mean", TREES[0], NETWORKS[1])),
        ),
    ),
}


def run_study(study: Study, data: Path, work: Path, parallel: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the comparison of a study as a document. Finished trainings in `work` are not repeated."""
    folder = work / "data"
    if not folder.exists():
        study.prepare(folder, data)
    scenarios = ScenarioOptions(SHARES, study.outages, {}, False, study.unseen)
    variants = parse_variants(study.variants, [])
    minutes = study.tuning_minutes
    tuning = run_tuning(folder / "job.yaml", minutes, work / "tuning", parallel) if minutes else None
    if tuning:
        choice = tuple(f"{path}={json.dumps(value)}" for path, value in tuning["chosen"].items())
        variants.append(Variant("tuned", choice))
    values = [*study.overrides, *overrides]
    tasks = make_tasks(folder / "job.yaml", variants, study.seeds, values, work / "runs", scenarios)
    start = time.monotonic()
    for number, (task, auc) in enumerate(run_in_parallel(run_task, tasks, parallel, None), start=1):
        line = f"{study.title}: {number}/{len(tasks)}  {task.name}: AUC {auc:.4f}"
        print(f"{line}  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    names = {variant.name for variant in variants}
    document = make_document(tasks, [name for name in REFERENCES if name in names], draws=500)
    return {
        "title": study.title,
        "machine": machine(),
        "versions": versions("asymdiffrec", "torch", "torchrec", "scikit-learn"),
        **document,
        "job": "job.yaml",
        "tuning": tuning and {key: tuning[key] for key in ("chosen", "reason", "trials", "seconds")},
    }


def run_tuning(job: Path, minutes: float, folder: Path, parallel: int) -> dict[str, Any]:
    """Return the document of `tune`, which uses validation rows only. Run `tune` unless `folder` has a document."""
    file = folder / "tuning.json"
    if not file.exists():
        tuning = Tuning(str(job.resolve()), (), str(folder.resolve()), (0.0, 0.3, 0.7))
        write_result(tuning, tune(tuning, 60 * minutes, 4, parallel, None, partial(print, file=sys.stderr, flush=True)))
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def claims(name: str, document: dict[str, Any]) -> Iterator[Result]:
    """Compare the AUCs of a study with the AUCs of their peers. Each result says whether it meets its goal."""
    comparison = Comparison(document)
    for share in SHARES:
        for reference, goal, holds in _goals(name, share, comparison):
            yield comparison.result("asymdiff", reference, share, goal, holds)
        if "tuned" in comparison.variants and share != 0.1:
            cell = comparison.difference("tuned", "base", share)
            goal = "significantly above" if share else "not significantly below"
            yield comparison.result("tuned", "base", share, goal, cell["low"] > 0 if share else cell["high"] >= 0)
    for other in ("no_aux", "gaussian", "autoencoder"):
        if other in comparison.variants:
            cell = comparison.difference(other, "asymdiff", 0.5)
            yield comparison.result("asymdiff", other, 0.5, "significantly above, as published", cell["high"] < 0)
    if "oracle" in comparison.variants:
        for share in (0.3, 0.5):
            for variant in comparison.variants:
                if variant not in ("base", "oracle"):
                    yield from _recovered(comparison, variant, share)


class Comparison:
    """The AUCs of a comparison, and differences of AUCs with confidence intervals."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.title, self.variants = document["title"], document["variants"]
        self._values = {(result["variant"], result["missing"]): result["auc"] for result in document["results"]}
        self._cells = {
            (cell["variant"], cell["from"], cell["missing"]): cell
            for cell in document["differences"]
            if cell["metric"] == "auc"
        }

    def auc(self, variant: str, share: float) -> float:
        """Return the AUC of a variant, for a share of missing fields."""
        return float(self._values[variant, share])

    def difference(self, variant: str, reference: str, share: float) -> dict[str, Any]:
        """Return the AUC of a variant minus the AUC of a reference, with its confidence interval.

        reference: one of REFERENCES.
        """
        return dict(self._cells[variant, reference, share])

    def result(self, variant: str, peer: str, share: float, goal: str, holds: bool | None) -> Result:
        """Compare the AUC of a variant with the AUC of a peer."""
        name = f"{self.title}: AUC of {variant}, {100 * share:g}% missing"
        return Result(name, self.auc(variant, share), "", peer, self.auc(peer, share), goal, holds)


MIN_GAINS = {0.1: 0.003, 0.3: 0.010, 0.5: 0.014, 0.7: 0.016}
"""Smallest AUC gain of asymdiff over base on MovieLens with a random split, by share of missing fields"""


def _goals(name: str, share: float, comparison: Comparison) -> Iterator[tuple[str, str, bool]]:
    """Yield the goals of asymdiff in a study as (peer, goal, whether the goal is met)."""
    differences = {
        reference: comparison.difference("asymdiff", reference, share)
        for reference in REFERENCES[:3]
        if reference in comparison.variants
    }
    if name == "movielens" and share:
        gain, cell = MIN_GAINS[share], differences["base"]
        yield "base", f"significantly above, by {gain:.3f} or more", cell["low"] > 0 and cell["difference"] >= gain
    elif "base" in differences:
        yield "base", "not significantly below", differences["base"]["high"] >= 0
    if name == "movielens":
        if share >= 0.3:
            yield "augment", "significantly above", differences["augment"]["low"] > 0
        yield "boosting_dropped", "above", differences["boosting_dropped"]["difference"] > 0
    if name in ("movielens-gaps", "adult"):
        names = {rival.rpartition(":")[2].lower() for rival in RIVALS}
        rivals = [variant for variant in comparison.variants if variant in names]
        best = max(rivals, key=lambda rival: comparison.auc(rival, share))
        holds = comparison.difference(best, "asymdiff", share)["low"] <= 0
        yield best, "not significantly below any rival", holds


def _recovered(comparison: Comparison, variant: str, share: float) -> Iterator[Result]:
    """Compare the AUC that a variant recovers with the AUC that can be recovered.

    base loses AUC with missing fields, and a variant may lose less. AUC that the oracle also loses cannot be recovered.
    """
    lost = {name: comparison.auc(name, 0.0) - comparison.auc(name, share) for name in ("base", "oracle", variant)}
    possible = lost["base"] - lost["oracle"]
    recovered = lost["base"] - lost[variant]
    goal = "at least half of it" if variant == "asymdiff" else ""
    holds = recovered >= 0.5 * possible if goal else None
    name = f"AUC that {variant} loses less than base, {100 * share:g}% missing"
    yield Result(name, recovered, "", "the oracle", possible, goal, holds)
    above, possible = (comparison.auc(one, share) - comparison.auc("base", share) for one in (variant, "oracle"))
    name = f"AUC of {variant} over base, {100 * share:g}% missing"
    yield Result(name, above, "", "the oracle over base", possible)


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "",
        data={
            "type": Path,
            "help": "folder with movielens-100k/ and adult/; default: run the synthetic log only",
        },
        only={
            "nargs": "*",
            "metavar": "STUDY",
            "choices": list(STUDIES),
            "help": "studies to run; default: all with --data",
        },
        work={
            "type": Path,
            "default": Path("evidence"),
            "help": "folder for runs; a repeated command continues with the runs in it",
        },
        parallel={"type": int, "default": 2, "help": "number of trainings at the same time"},
        into={"type": Path, "default": RESULTS, "help": "folder for the comparisons"},
        report={"action": "store_true", "help": "write docs/evidence.md from the comparisons without running a study"},
    )
    names = options.only or (list(STUDIES) if options.data else ["synthetic"])
    if options.quick:
        with tempfile.TemporaryDirectory() as temporary:
            small = Study("small", lambda out, data: prepare_synthetic(out, rows=3_000), ("base", "asymdiff"), seeds=1)
            documents = {"small": run_study(small, options.data, Path(temporary), options.parallel, ["train.steps=20"])}
        show((result for name, document in documents.items() for result in claims(name, document)), options)
        return
    for name in [] if options.report else names:
        document = run_study(STUDIES[name], options.data, options.work / name, options.parallel)
        options.into.mkdir(parents=True, exist_ok=True)
        (options.into / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    files = {name: options.into / f"{name}.json" for name in STUDIES}
    documents = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    results = [result for name, document in documents.items() for result in claims(name, document)]
    if options.report:
        write_report(documents, results)
    show(results, options)


if __name__ == "__main__":
    main()
