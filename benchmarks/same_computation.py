"""Show that two commits compute the same: record the results of each commit, then compare the two records.

python -m benchmarks.same_computation record TREE OUT.json [--data FOLDER] [--steps N] [--rows N]
python -m benchmarks.same_computation compare A.json B.json

`record` uses a working tree only through its command line, so it also records commits whose modules have other names.
All commands run on the CPU with one process and one thread. A record has neither paths nor times, so on the same host
the same tree always gives the same record.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LIMIT = 1e-6
"""Largest relative difference at which two values count as equal"""
MAX_SCORES = 2000
"""Number of scores in a record, from the start of a prediction. Mean and standard deviation are of all rows"""

Value = float | str | None
Quantities = dict[str, list[Value]]

RENAMED_SETTINGS = {"diffusion.variant": "diffusion.method", ".rows": ".num_embeddings"}
"""Old and new names in the paths of `--set`. A tree that refuses a new name gets the old name."""
RENAMED_KEYS = {"step/rows": "step/row_checksum", "uauc": "gauc"}
"""Old and new names of quantities in a record. The new name replaces the old name, also inside a longer name."""


@dataclass(frozen=True)
class Experiment:
    """A training, with the options to evaluate and export its run."""

    name: str
    settings: tuple[str, ...]
    evaluate: tuple[str, ...] = ()
    tables: str = "fp32"
    """dtype of the tables in the export"""


METHODS = tuple(Experiment(name, (f"diffusion.method={name}",)) for name in ("base", "dropout", "augment", "asymdiff"))

BROAD_SETTINGS = (
    "diffusion.method=asymdiff",
    "diffusion.forward.pattern=empirical",
    "diffusion.weights.recon=0.5",
    "model.extractor.name=dcn",
    "tables.optimizer.name=rowwise_adagrad",
    "tables.per_table.item_id.dtype=fp16",
    "fields.history.weights=history_weights",
    "data.weight=sample_weight",
    "train.accumulate=2",
    "train.clip_norm=1",
    "train.schedule.warmup_steps=20",
    "train.schedule.decay=cosine",
)


def broad(managed: str) -> Experiment:
    """Return an experiment with many settings that METHODS do not use. The table of field `managed` has managed ids."""
    settings = (f"fields.{managed}.num_embeddings=9984", f"tables.per_table.{managed}.collision=managed")
    return Experiment("broad", (*BROAD_SETTINGS, *settings), ("--outage", "item", "--as-in-training"), "int8")


@dataclass(frozen=True)
class Dataset:
    """A data set, and the experiments on it."""

    name: str
    prepare: tuple[str, ...]
    """Options of `prepare NAME`"""
    experiments: tuple[Experiment, ...]


def datasets(rows: int, movielens: Path | None) -> Iterator[Dataset]:
    """Yield the synthetic data set, and MovieLens-100K if the folder with its files is given."""
    yield Dataset("synthetic", ("--rows", str(rows)), (*METHODS, broad("city")))
    if movielens is not None:
        yield Dataset("movielens-100k", ("--input", str(movielens.resolve())), (*METHODS, broad("genres")))


class CommandError(Exception):
    """A command of a tree failed. The message has the standard error of the command."""


class Tree:
    """A working tree of this repository. Its commands run as `python -m asymdiffrec` in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._old_names: dict[str, str] = {}
        package = Path(self._python("-c", "import asymdiffrec; print(asymdiffrec.__file__)").strip())
        if not package.is_relative_to(self.folder):
            raise CommandError(f"{self.folder}: not the root of a working tree; asymdiffrec is imported from {package}")

    def _python(self, *arguments: str) -> str:
        """Run Python and return its standard output. Raises CommandError if the exit status is not 0."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "1000"}
        environment.pop("PYTHONSAFEPATH", None)  # it would remove the tree from the import path
        ended = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        if ended.returncode:
            raise CommandError(f"{' '.join(arguments)}: exit status {ended.returncode}\n{ended.stderr}")
        return ended.stdout

    def command(self, *arguments: str | Path) -> Any:
        """Run a command with --json and return the JSON document that it prints."""
        start = time.perf_counter()
        printed = self._python("-m", "asymdiffrec", *map(str, arguments), "--json")
        print(f"{time.perf_counter() - start:6.1f} s  {arguments[0]}", file=sys.stderr)
        return json.loads(printed)

    def train(self, job: Path, run: Path, settings: Iterable[str]) -> None:
        """Train. If the command line does not know the new name of an override, train again with its old name."""
        options = [option for setting in settings for option in ("--set", self._spelled(setting))]
        try:
            self.command("train", job, "--run", run, *options)
        except CommandError as error:
            refused = {new: old for old, new in RENAMED_SETTINGS.items() if f"{new}: unknown key" in str(error)}
            if not refused:
                raise
            self._old_names |= refused
            self.train(job, run, settings)

    def _spelled(self, setting: str) -> str:
        """Return a setting PATH=VALUE with the names that this tree accepts."""
        path, value = setting.split("=", 1)
        for new, old in self._old_names.items():
            path = path.replace(new, old)
        return f"{path}={value}"

    def commit(self) -> str:
        """Return the commit that is checked out, with "-dirty" if files differ from the commit."""
        git = ["git", "-C", str(self.folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def column_digests(folder: Path) -> list[Value]:
    """Return "COLUMN SHA-256" for each column of a folder of Parquet files. The digest is of the values, in order."""
    table = pq.read_table(folder)
    values = {name: repr(table[name].to_pylist()).encode() for name in sorted(table.column_names)}
    return [f"{name} {hashlib.sha256(text).hexdigest()[:16]}" for name, text in values.items()]


def add_weights(file: Path) -> None:
    """Add two columns to a Parquet file: weights for the ids of `history`, and sample weights."""
    table, row_group = pq.read_table(file), pq.read_metadata(file).row_group(0).num_rows
    lists = table["history"].to_pylist()
    weights = [None if ids is None else [1 / (1 + position) for position in range(len(ids))] for ids in lists]
    table = table.append_column("history_weights", pa.array(weights, pa.list_(pa.float32())))
    table = table.append_column("sample_weight", pa.array(0.5 + np.arange(len(table)) % 4 / 4, pa.float32()))
    pq.write_table(table, file, row_group_size=row_group)


def training_quantities(log: Path) -> Iterator[tuple[str, Value]]:
    """Yield quantities from metrics.jsonl: all losses, the row checksum and the counts of managed ids of each step; the
    metrics of all validations and of the test."""
    for line in log.read_text().splitlines():
        record = json.loads(line)
        for key, value in record.items():
            if "loss" in record and (key.startswith("loss") or "/" in key or isinstance(value, str)):
                yield f"step/{key}", value
            elif "/" in key:
                yield key, value


def score_quantities(file: Path) -> Iterator[tuple[str, Value]]:
    """Yield the first scores of a prediction, and number, mean and standard deviation of all scores.

    A score is rounded to the fewest decimal digits that identify its fp32 value.
    """
    scores = pq.read_table(file, columns=["score"])["score"].to_numpy()
    yield from (("score", float(str(score))) for score in scores[:MAX_SCORES])
    whole = scores.astype(np.float64)
    yield from (("rows", len(whole)), ("mean", float(whole.mean())), ("standard deviation", float(whole.std())))


def experiment_quantities(
    tree: Tree, data: Path, experiment: Experiment, steps: int, work: Path
) -> Iterator[tuple[str, Value]]:
    """Train, evaluate, export and predict; yield (name, value) for each number in the results."""
    run, export = work / "run", work / "export"
    sizes = (f"train.steps={steps}", "train.log_every=1", "train.batch_size=256")
    tree.train(data / "job.yaml", run, (*sizes, *experiment.settings))
    yield from training_quantities(run / "metrics.jsonl")

    evaluation = tree.command("evaluate", run, "--missing", "0,0.3", *experiment.evaluate)
    yield "evaluate/step", evaluation["step"]
    for scenario in evaluation["results"]:
        yield from ((f"evaluate/{key}", value) for key, value in scenario.items() if key != "scenario")

    tree.command("export", run, export, "--tables", experiment.tables)
    for model in (run, export):
        scores = work / f"{model.name}.parquet"
        tree.command("predict", model, data / "test", scores)
        yield from ((f"predict {model.name}/{key}", value) for key, value in score_quantities(scores))


def record(tree: Tree, chosen: Iterable[Dataset], steps: int) -> Quantities:
    """Run every experiment on every data set; return {"DATA SET/EXPERIMENT/NAME": values in order}."""
    quantities: defaultdict[str, list[Value]] = defaultdict(list)
    for dataset in chosen:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            tree.command("prepare", dataset.name, data, *dataset.prepare)
            for split in ("train", "valid", "test"):
                quantities[f"{dataset.name}/columns/{split}"] = column_digests(data / split)
            for file in sorted(data.glob("*/*.parquet")):
                add_weights(file)
            for experiment in dataset.experiments:
                print(f"{dataset.name}, {experiment.name}:", file=sys.stderr)
                work = Path(folder) / experiment.name
                work.mkdir()
                for name, value in experiment_quantities(tree, data, experiment, steps, work):
                    for old, new in RENAMED_KEYS.items():
                        name = name.replace(old, new)
                    quantities[f"{dataset.name}/{experiment.name}/{name}"].append(value)
    return dict(quantities)


def differences(first: Sequence[Value], second: Sequence[Value]) -> list[float]:
    """Return |a - b| / max(|a|, |b|) for each pair of values.

    The difference of equal values is 0. Different values have an infinite difference if one is missing or no finite
    number.
    """
    result = []
    for a, b in zip_longest(first, second, fillvalue="missing"):
        if a == b:
            result.append(0.0)
        elif isinstance(a, int | float) and isinstance(b, int | float) and math.isfinite(a) and math.isfinite(b):
            result.append(abs(a - b) / max(abs(a), abs(b)))
        else:
            result.append(math.inf)
    return result


def compare(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Print the largest difference of each quantity; return whether all differences are at most LIMIT.

    A quantity in only one of the records counts as different: either it was renamed and the names are missing in
    RENAMED_KEYS, or one tree does not compute it.
    """
    quantities: tuple[Quantities, Quantities] = (first["quantities"], second["quantities"])
    for letter, document in zip("AB", (first, second), strict=True):
        print(f"{letter}: commit {document['commit']}, {document['steps']} steps")
    print(f"{'quantity':<52} {'values':>6}  {'difference':<14} within {LIMIT:g}")
    failed, largest = 0, 0.0
    names = list(dict.fromkeys([*quantities[0], *quantities[1]]))
    for name in names:
        values = [record.get(name, []) for record in quantities]
        relative = differences(*values)
        beyond = [index for index, difference in enumerate(relative) if difference > LIMIT]
        worst = max(relative, default=0.0)
        failed, largest = failed + bool(beyond), max(largest, worst)
        absent = [letter for letter, part in zip("AB", quantities, strict=True) if name not in part]
        difference_text = f"not in {absent[0]}" if absent else "not equal" if math.isinf(worst) else f"{worst:.3g}"
        verdict = f"no, first at value {beyond[0] + 1}" if beyond else "yes"
        print(f"{name:<52} {max(map(len, values)):>6,}  {difference_text:<14} {verdict}")
    counts = f"{len(names)} quantities, {failed} with a difference above {LIMIT:g}"
    print(f"{counts}; largest relative difference {largest:.3g}")
    return not failed


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="record the results of a working tree")
    recorder.add_argument("tree", type=Path, help="root of a working tree, for example from `git worktree add`")
    recorder.add_argument("out", type=Path, help="JSON file to write")
    recorder.add_argument("--data", type=Path, help="folder with MovieLens-100K; default: synthetic data only")
    recorder.add_argument("--steps", type=int, default=200, help="training steps of each experiment")
    recorder.add_argument("--rows", type=int, default=40_000, help="samples of the synthetic data")
    comparer = commands.add_parser("compare", help="compare two records; exit status 1 if they differ")
    comparer.add_argument("records", type=Path, nargs=2, metavar="FILE", help="file that `record` wrote")
    options = parser.parse_args()

    if options.command == "compare":
        first, second = (json.loads(file.read_text()) for file in options.records)
        sys.exit(0 if compare(first, second) else 1)
    try:
        tree = Tree(options.tree)
        quantities = record(tree, datasets(options.rows, options.data), options.steps)
    except CommandError as error:
        sys.exit(f"error: {error}")
    document = {"commit": tree.commit(), "steps": options.steps, "quantities": quantities}
    options.out.write_text(json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    main()
