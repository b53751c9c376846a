"""Run several plans of one job on two workers of this host; compare memory and step time with the estimates.

First the speed of this host is measured, as by `plan --calibrate`. Then a training with tiny tables measures the memory
of the libraries and the reader of a worker. A plan does not estimate this memory; the reserved memory covers it.
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
"""embedding_dim of all tables; number of ids in each list of column d; samples of a step"""
KINDS = {"t": "table_wise", "r": "row_wise", "c": "column_wise", "d": "data_parallel"}
PLANS = ("tttt", "rrrr", "cccc", "rttt", "tttr", "tttc", "tttd", "ddtt", "rrtd", "cttr", "rcdt", "ccdr")
"""Each plan has one letter, see KINDS, for the sharding of each of the tables a, b, c, d"""


def prepare(out: Path, samples: int, workers: int) -> None:
    """Write a data set with its job file. All ids are equally frequent."""

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


def train_plan(data: Path, folder: Path, plan: str, *overrides: str) -> Mapping[str, Any]:
    """Train with a plan; return the planned and measured resources from result.json of the run."""
    kinds = {name: {"sharding": KINDS[kind]} for name, kind in zip(ROWS, plan, strict=True)}
    job = read_job(data / "job.yaml", [f"tables.per_table={json.dumps(kinds)}", *overrides])
    result = train_job(job, read_statistics(job), Run(folder), console=Console(quiet=True))
    measured: Mapping[str, Any] = result["measured"]
    return measured


def measure(quick: bool) -> Iterator[Result]:
    """Yield memory and step time of each plan."""
    with tempfile.TemporaryDirectory() as temporary:
        device = Path(temporary) / "here.yaml"
        device.write_text(yaml.safe_dump(calibrate("here").model_dump()))
        prepare(Path(temporary) / "data", *((10 * BATCH, 1) if quick else (100 * BATCH, 2)))
        data, rates = Path(temporary) / "data", f"cluster.device={device}"

        def table_sizes(share: float) -> list[str]:
            """Return overrides that multiply num_embeddings of each table by `share`."""
            return [f"fields.{name}.num_embeddings={int(share * rows)}" for name, rows in ROWS.items()]

        tiny = train_plan(data, Path(temporary) / "tiny", PLANS[0], rates, *table_sizes(0.001))["memory_bytes"]
        libraries = mean(rank["measured"] - rank["planned"] for rank in tiny)
        planned, measured = [], []
        for plan in PLANS[:1] if quick else PLANS:
            resources = train_plan(data, Path(temporary) / plan, plan, rates, *table_sizes(0.05 if quick else 1))
            for rank in resources["memory_bytes"]:
                values = rank["measured"] / 1e9, (rank["planned"] + libraries) / 1e9
                holds = abs(values[0] / values[1] - 1) <= 0.1
                name, peer = f"plan {plan}, rank {rank['rank']}", f"estimated, and {libraries / 1e9:.2f} of libraries"
                yield Result(name, values[0], "GB", peer, values[1], "within 10 %", holds)
            step = resources["step_milliseconds"]
            planned.append(step["planned"])
            measured.append(step["measured"])
            yield Result(f"plan {plan}, step", step["measured"], "ms", "estimated", step["planned"])
        if not quick:  # needs several plans
            correlation = float(spearmanr(planned, measured).statistic)
            yield Result("rank correlation of steps, estimated and measured", correlation, "", "perfect", 1.0)


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
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
