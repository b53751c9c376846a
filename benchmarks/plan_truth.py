"""Plans of one job run on two workers of this machine: memory and step time, as estimated and as measured.

The machine's rates are measured first, as `plan --calibrate` does. So is what a worker's libraries and its reader take,
by a plan of tables that are next to nothing: a plan leaves that to its reserve.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from rich.console import Console
from scipy.stats import spearmanr

from asymdiffrec.datasets.prepare.write_dataset import write_dataset
from asymdiffrec.embeddings.planner.calibrate import calibrate
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run
from benchmarks._report import arguments, show
from benchmarks._result import Result

ROWS = {"a": 800_000, "b": 400_000, "c": 200_000, "d": 400_000}
DIM, LONG, BATCH = 128, 8, 2048
"""Columns of a table; ids of the list d; samples of a step"""
KINDS = {"t": "table_wise", "r": "row_wise", "c": "column_wise", "d": "data_parallel"}
PLANS = ("tttt", "rrrr", "cccc", "rttt", "tttr", "tttc", "tttd", "ddtt", "rrtd", "cttr", "rcdt", "ccdr")
"""The sharding of each table in turn"""


def prepare(out: Path, samples: int, workers: int) -> None:
    """Samples whose ids are all as frequent."""

    def log(rows: int, seed: int) -> Iterator[pa.Table]:
        rng = np.random.default_rng(seed)
        columns: dict[str, Any] = {name: rng.integers(0, ROWS[name], rows) for name in "abc"}
        ids = rng.integers(0, ROWS["d"], rows * LONG)
        columns["d"] = pa.ListArray.from_arrays(np.arange(0, rows * LONG + 1, LONG, dtype=np.int32), ids)
        yield pa.table({**columns, "label": rng.integers(0, 2, rows)})

    splits = {"train": log(samples, 0), "valid": log(2 * BATCH, 1), "test": log(2 * BATCH, 2)}
    fields = {name: {"type": "id_list" if name == "d" else "id", "num_embeddings": rows} for name, rows in ROWS.items()}
    job = {
        "name": "truth",
        "data": {"path": ".", "window": 1024},
        "fields": fields,
        "tables": {"embedding_dim": DIM},
        "diffusion": {"method": "base"},
        "train": {"batch_size": BATCH, "epochs": 1, "log_every": 10},
        "cluster": {"workers": workers},
    }
    write_dataset(out, splits, job)


def run(data: Path, folder: Path, plan: str, *settings: str) -> Mapping[str, Any]:
    """Planned and measured, as a run's `result.json` has them."""
    kinds = {name: {"sharding": KINDS[kind]} for name, kind in zip(ROWS, plan, strict=True)}
    job = read_job(data / "job.yaml", [f"tables.per_table={json.dumps(kinds)}", *settings])
    result = train_job(job, read_statistics(job), Run(folder), console=Console(quiet=True))
    measured: Mapping[str, Any] = result["measured"]
    return measured


def measure(quick: bool) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as temporary:
        device = Path(temporary) / "here.yaml"
        device.write_text(yaml.safe_dump(calibrate("here").model_dump()))
        prepare(Path(temporary) / "data", *((10 * BATCH, 1) if quick else (100 * BATCH, 2)))
        data, rates = Path(temporary) / "data", f"cluster.device={device}"

        def rows(share: float) -> list[str]:
            return [f"fields.{name}.num_embeddings={int(share * rows)}" for name, rows in ROWS.items()]

        alone = run(data, Path(temporary) / "alone", PLANS[0], rates, *rows(0.001))["memory_bytes"]
        beside = mean(rank["measured"] - rank["planned"] for rank in alone)
        planned, taken = [], []
        for plan in PLANS[:1] if quick else PLANS:
            found = run(data, Path(temporary) / plan, plan, rates, *rows(0.05 if quick else 1))
            for rank in found["memory_bytes"]:
                values = rank["measured"] / 1e9, (rank["planned"] + beside) / 1e9
                holds = abs(values[0] / values[1] - 1) <= 0.1
                name, peer = f"plan {plan}, rank {rank['rank']}", f"estimated, and {beside / 1e9:.2f} of libraries"
                yield Result(name, values[0], "GB", peer, values[1], "within 10 %", holds)
            step = found["step_milliseconds"]
            planned.append(step["planned"])
            taken.append(step["measured"])
            yield Result(f"plan {plan}, step", step["measured"], "ms", "estimated", step["planned"])
        if not quick:  # of one plan there is none
            correlation = float(spearmanr(planned, taken).statistic)
            yield Result("rank correlation of steps, estimated and measured", correlation, "", "perfect", 1.0)


def main() -> None:
    silence_torchrec_warnings()
    options = arguments(__doc__ or "")
    results = []
    with Console(stderr=True).status("running plans") as status:
        for result in measure(options.quick):
            results.append(result)
            status.update(f"running plans; last: {result.name}")
    show(results, options)


if __name__ == "__main__":
    main()
