"""Does it help, and when: every variant and rival on five data sets, over seeds, with fields missing.

Each data set's comparison is kept in results/evidence/; `--report` draws docs/evidence.md from what is there.
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
KEPT = HERE / "results" / "evidence"
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
    """A data set, and what is compared on it."""

    title: str
    prepare: Callable[[Path, Path], Any]
    """Makes it in a new folder, of the folder of raw data"""
    variants: tuple[str, ...] = (*RIVALS, "asymdiff", *PARTS, *PUBLISHED)
    seeds: int = 5
    outages: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    """Of all networks"""
    tuned: float = 0
    """Minutes that `tune` has, whose choice is compared, too"""


def _movielens(out: Path, data: Path, split: Any = "random") -> None:
    prepare_movielens(out, input=data / "movielens-100k", split=split)


def _with_gaps(out: Path, data: Path, share: float = 0.2) -> None:
    """MovieLens whose fields are missing at random, in training too."""
    whole = out.with_name(f"{out.name}-whole")
    _movielens(whole, data)
    job = read_yaml(str(whole / "job.yaml"))
    fields, rng = job["fields"], np.random.default_rng(0)
    names = {field.get("column", name) for name, field in fields.items()} - {job["data"]["user"]}

    def gaps(split: str) -> Iterator[pa.Table]:
        table = pq.read_table(whole / split)
        for name in table.column_names:
            if name in names:
                gone = pa.array(rng.random(len(table)) < share)
                column = pc.if_else(gone, pa.scalar(None, table.schema.field(name).type), table[name])
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
        "MovieLens-100K, the latest ratings to be predicted",
        partial(_movielens, split="time"),
        FEW,
        seeds=8,
        unseen=("user_id",),
        tuned=20,
    ),
    "movielens-gaps": Study("MovieLens-100K with 20 % of the fields missing, in training too", _with_gaps, FEW),
    # One number's single values tell much, and trees get 255 bins; chosen on validation rows.
    "adult": Study("Adult (UCI)", _adult, settings=(f"tables.numeric_bins={MAX_KNOTS}",)),
    "synthetic": Study(
        "A synthetic click log whose best is known",
        lambda out, data: prepare_synthetic(out, rows=200_000),
        (
            "benchmarks.rivals.oracle:oracle",
            *(one for one in FEW if one not in ("indicators", "mean", TREES[0], NETWORKS[1])),
        ),
    ),
}


def conduct(study: Study, data: Path, work: Path, parallel: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The document of its comparison; what `work` has of it already is not done again."""
    folder = work / "data"
    if not folder.exists():
        study.prepare(folder, data)
    asked = ScenarioOptions(SHARES, study.outages, {}, False, study.unseen)
    chosen = parse_variants(study.variants, [])
    tuning = tuned(folder / "job.yaml", study.tuned, work / "tuning", parallel) if study.tuned else None
    if tuning:
        chosen.append(
            Variant("tuned", tuple(f"{path}={json.dumps(value)}" for path, value in tuning["chosen"].items()))
        )
    todo = make_tasks(folder / "job.yaml", chosen, study.seeds, [*study.settings, *settings], work / "runs", asked)
    start = time.monotonic()
    for number, (task, auc) in enumerate(run_in_parallel(run_task, todo, parallel, None), start=1):
        told = f"{study.title}: {number}/{len(todo)}  {task.name}: AUC {auc:.4f}"
        print(f"{told}  {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    names = {one.name for one in chosen}
    document = make_document(todo, [name for name in REFERENCES if name in names], draws=500)
    return {
        "title": study.title,
        "machine": machine(),
        "versions": versions("asymdiffrec", "torch", "torchrec", "scikit-learn"),
        **document,
        "job": "job.yaml",
        "tuning": tuning and {key: tuning[key] for key in ("chosen", "reason", "trials", "seconds")},
    }


def tuned(job: Path, minutes: float, folder: Path, parallel: int) -> dict[str, Any]:
    """What `tune` chose, on validation rows alone."""
    kept = folder / "tuning.json"
    if not kept.exists():
        tuning = Tuning(str(job.resolve()), (), str(folder.resolve()), (0.0, 0.3, 0.7))
        write_result(tuning, tune(tuning, 60 * minutes, 4, parallel, None, partial(print, file=sys.stderr, flush=True)))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def claims(name: str, document: dict[str, Any]) -> Iterator[Result]:
    """What was to be shown, and whether it holds."""
    found = Found(document)
    for share in SHARES:
        for reference, goal, holds in _goals(name, share, found):
            yield found.claim("asymdiff", reference, share, goal, holds)
        if "tuned" in found.variants and share != 0.1:
            cell = found.difference("tuned", "base", share)
            holds = cell["high"] >= 0 if share == 0 else cell["low"] > 0
            yield found.claim("tuned", "base", share, "not surely below" if share == 0 else "surely above", holds)
    for other in ("no_aux", "gaussian", "autoencoder"):
        if other in found.variants:
            cell = found.difference(other, "asymdiff", 0.5)
            yield found.claim("asymdiff", other, 0.5, "surely above, as published", cell["high"] < 0)
    if "oracle" in found.variants:
        for share in (0.3, 0.5):
            for variant in found.variants:
                if variant not in ("base", "oracle"):
                    yield from _won_back(found, variant, share)


class Found:
    """AUCs of a comparison, and differences of them with their intervals."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.title, self.variants = document["title"], document["variants"]
        self._values = {(one["variant"], one["missing"]): one["auc"] for one in document["results"]}
        self._cells = {
            (cell["variant"], cell["from"], cell["missing"]): cell
            for cell in document["differences"]
            if cell["metric"] == "auc"
        }

    def auc(self, variant: str, share: float) -> float:
        return float(self._values[variant, share])

    def difference(self, variant: str, reference: str, share: float) -> dict[str, Any]:
        """Of the first from the second, which is one of REFERENCES"""
        return dict(self._cells[variant, reference, share])

    def claim(self, variant: str, beside: str, share: float, goal: str, holds: bool | None) -> Result:
        what = f"{self.title}: AUC of {variant}, {100 * share:g}% missing"
        return Result(what, self.auc(variant, share), "", beside, self.auc(beside, share), goal, holds)


LEAST = {0.1: 0.003, 0.3: 0.010, 0.5: 0.014, 0.7: 0.016}
"""Of asymdiff over base on MovieLens, random split"""


def _goals(name: str, share: float, found: Found) -> Iterator[tuple[str, str, bool]]:
    """For asymdiff: beside whom, what is asked, and whether it holds."""
    beside = {one: found.difference("asymdiff", one, share) for one in REFERENCES[:3] if one in found.variants}
    if name == "movielens" and share:
        least, cell = LEAST[share], beside["base"]
        yield "base", f"surely above, by {least:.3f} or more", cell["low"] > 0 and cell["difference"] >= least
    elif "base" in beside:
        yield "base", "not surely below", beside["base"]["high"] >= 0
    if name == "movielens":
        if share >= 0.3:
            yield "augment", "surely above", beside["augment"]["low"] > 0
        yield "boosting_dropped", "above", beside["boosting_dropped"]["difference"] > 0
    if name in ("movielens-gaps", "adult"):
        named = {one.rpartition(":")[2].lower() for one in RIVALS}
        rivals = [one for one in found.variants if one in named]
        best = max(rivals, key=lambda one: found.auc(one, share))
        yield best, "not surely below any rival", found.difference(best, "asymdiff", share)["low"] <= 0


def _won_back(found: Found, variant: str, share: float) -> Iterator[Result]:
    """Of the AUC that base loses with the fields, beyond what the oracle loses, too: for nobody gets that back."""
    lost = {one: found.auc(one, 0.0) - found.auc(one, share) for one in ("base", "oracle", variant)}
    room = lost["base"] - lost["oracle"]
    won = lost["base"] - lost[variant]
    goal = "at least half of it" if variant == "asymdiff" else ""
    what = f"AUC that {variant} loses less than base, {100 * share:g}% missing"
    yield Result(what, won, "", "the oracle", room, goal, won >= 0.5 * room if goal else None)
    above = found.auc(variant, share) - found.auc("base", share)
    room = found.auc("oracle", share) - found.auc("base", share)
    yield Result(f"AUC of {variant} over base, {100 * share:g}% missing", above, "", "the oracle over base", room)


def main() -> None:
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "",
        data={"type": Path, "help": "folder with movielens-100k/ and adult/; left out: the synthetic log alone"},
        only={"nargs": "*", "metavar": "STUDY", "choices": list(STUDIES), "help": f"of {', '.join(STUDIES)}"},
        work={"type": Path, "default": Path("evidence"), "help": "folder of all runs; started again it goes on there"},
        parallel={"type": int, "default": 2, "help": "trainings side by side"},
        into={"type": Path, "default": KEPT, "help": "folder of the comparisons"},
        report={"action": "store_true", "help": "do not run, but draw docs/evidence.md of the comparisons"},
    )
    names = options.only or (list(STUDIES) if options.data else ["synthetic"])
    if options.quick:
        with tempfile.TemporaryDirectory() as temporary:
            small = Study("small", lambda out, data: prepare_synthetic(out, rows=3_000), ("base", "asymdiff"), seeds=1)
            documents = {"small": conduct(small, options.data, Path(temporary), options.parallel, ["train.steps=20"])}
        show((claim for name, one in documents.items() for claim in claims(name, one)), options)
        return
    for name in [] if options.report else names:
        document = conduct(STUDIES[name], options.data, options.work / name, options.parallel)
        options.into.mkdir(parents=True, exist_ok=True)
        (options.into / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    kept = {name: options.into / f"{name}.json" for name in STUDIES}
    documents = {name: json.loads(file.read_text()) for name, file in kept.items() if file.exists()}
    found = [claim for name, one in documents.items() for claim in claims(name, one)]
    if options.report:
        write_report(documents, found)
    show(found, options)


if __name__ == "__main__":
    main()
