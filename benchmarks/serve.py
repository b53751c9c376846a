"""Measure serving: requests per second and latency for one sample and for a hundred candidates.

The peers are a plain server with the same model, direct calls of the scoring function, and Ray Serve. Batch prediction
is compared with the bare forward pass, in rows per second.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import load_export
from benchmarks._batch_prediction import prediction_results
from benchmarks._load import Load, saturate, steady
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result
from benchmarks._serve_changes import kill_results, swap_results
from benchmarks._serve_requests import requests_for, require_same_scores, vocabulary
from benchmarks._servers import ROOT, our_server, plain_server

CANDIDATES = 100
ROUNDS = 5
SWAPS = 20
GOALS = {"one sample": 1.3, "100 candidates": 2.0}
"""Goal: smallest ratio of our rate to the rate of the plain server"""
MAX_P99_MS = 10
MIN_SHARE_UNDER_RAY, MIN_OVER_RAY_SERVE = 0.6, 5
"""Goals: smallest ratio of the rate with --ray to the rate of the default server, and to the rate of Ray Serve out of
the box"""


@dataclass
class Target:
    """A server under load, with its requests and the measured loads."""

    port: int
    requests: Mapping[str, bytes]
    loads: dict[str, list[Load]] = field(default_factory=dict)
    """{name of the request: load of each round}"""

    def rate(self, request: str) -> float:
        """Return the median rate of all rounds, in requests per second."""
        return statistics.median(load.rate for load in self.loads[request])

    def require_no_failure(self) -> None:
        """Raise AssertionError if a request failed at the first try. No fault is injected here, so all must succeed."""
        failed = sum(load.failed + load.retried for loads in self.loads.values() for load in loads)
        assert not failed, f"{failed} requests failed"


def main() -> None:
    """Run the program with the options of the command line, and print its results."""
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "", ray={"action": "store_true", "help": "also measure Ray Serve, which takes minutes"}
    )
    seconds, rounds = (0.5, 1) if options.quick else (4.0, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as temporary:
        folder = Path(temporary)
        data = train_and_export(folder, rows=3_000 if options.quick else 40_000)
        show(results(folder, data, seconds, rounds, options.ray), options)


def train_and_export(folder: Path, rows: int) -> Path:
    """Prepare a data set in folder/data, train a small model, export it to folder/export; return folder/data."""
    data = folder / "data"
    prepare_synthetic(data, rows=rows)
    command = [sys.executable, "-m", "asymdiffrec"]
    overrides = ["--set", "train.epochs=1", "--set", "train.batch_size=256"]
    training = [*command, "train", str(data / "job.yaml"), "--run", str(folder / "run"), *overrides]
    subprocess.run(training, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([*command, "export", folder / "run", folder / "export"], cwd=ROOT, check=True, capture_output=True)
    return data


def results(folder: Path, data: Path, seconds: float, rounds: int, under_ray: bool) -> Iterator[Result]:
    """Yield all results. Each load lasts `seconds` and is repeated `rounds` times."""
    export = load_export(folder / "export")
    engine = Engine(export)
    table = pq.read_table(data / "test").select(export.schema.columns(labelled=False)).slice(0, CANDIDATES)
    ours, plain = requests_for(engine, table)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary(engine, data)))
    with ExitStack() as stack:
        default = Target(stack.enter_context(our_server(folder)).port, ours)
        compiled = Target(stack.enter_context(our_server(folder, "--compile")).port, ours)
        peer = Target(stack.enter_context(plain_server(folder)).port, plain)
        require_same_scores(default.port, ours, peer.port, plain)
        require_same_scores(compiled.port, ours, peer.port, plain)
        measure([default, compiled, peer], seconds, rounds)
        compiled.require_no_failure()
        yield from against_plain(default, peer)
        yield from at_half_the_load([default, compiled, peer], seconds, rounds)
        yield from against_calls(engine, table, default)
        for request in ours:
            rates = compiled.rate(request), default.rate(request)
            yield Result(f"requests with --compile, {request}", rates[0], "/s", "default server", rates[1])
    yield from swap_results(folder, ours["one sample"], 2 if rounds == 1 else SWAPS)
    if under_ray:
        yield from against_ray_serve(folder, ours, seconds, rounds)
        yield from kill_results(folder, ours["one sample"])
    yield from prediction_results(folder, data, rounds)


def measure(targets: list[Target], seconds: float, rounds: int) -> None:
    """Measure all targets alternately, so that a change of the machine's speed affects all of them.

    Round 0 is a warm-up.
    """
    for number in range(rounds + 1):
        for target in targets:
            for name, request in target.requests.items():
                load = saturate(target.port, request, seconds / 4 if number == 0 else seconds)
                if number:
                    target.loads.setdefault(name, []).append(load)


def against_plain(ours: Target, plain: Target) -> Iterator[Result]:
    """Compare our rate with the rate of the plain server, for each request."""
    for request in ours.requests:
        rates, goal = (ours.rate(request), plain.rate(request)), GOALS.get(request)
        holds = None if goal is None else rates[0] >= goal * rates[1]
        text = f">= {goal}" if goal else ""
        yield Result(f"requests, {request}", rates[0], "/s", "plain server", rates[1], text, holds)
    ours.require_no_failure()


def at_half_the_load(targets: Sequence[Target], seconds: float, rounds: int) -> Iterator[Result]:
    """Compare the latencies of our server, with and without compiled code, and of the plain server.

    Each server gets requests at half of its highest rate. A latency is the median of the rounds, because the machine
    itself sometimes pauses.
    """
    for request in ("one sample", "100 candidates"):
        loads = [
            [steady(target.port, target.requests[request], target.rate(request) / 2, seconds) for target in targets]
            for _ in range(rounds)
        ]
        for share in (0.5, 0.99):
            default, compiled, plain = (
                statistics.median(load.quantile(share) for load in of_target) for of_target in zip(*loads, strict=True)
            )
            name, has_goal = f"p{100 * share:g} at half the load, {request}", request == "one sample" and share == 0.99
            goal = (f"< {MAX_P99_MS} ms", default < MAX_P99_MS) if has_goal else ("", None)
            yield Result(name, default, "ms", "plain server", plain, *goal)
            yield Result(f"{name}, --compile", compiled, "ms", "plain server", plain)


def against_calls(engine: Engine, table: pa.Table, ours: Target) -> Iterator[Result]:
    """Compare our rate with the rate of sequential calls of the scoring function, without HTTP."""
    for request, rows in (("one sample", 1), ("100 samples", CANDIDATES)):
        samples = table.slice(0, rows).to_pylist()
        seconds, _ = alternate(partial(_score, engine, samples), lambda: None, 200)
        yield Result(f"requests, {request}", ours.rate(request), "/s", "calls of a function", 1 / seconds)


def _score(engine: Engine, samples: list[dict[str, Any]]) -> None:
    engine.score(engine.request_schema.table(samples))


def against_ray_serve(folder: Path, requests: Mapping[str, bytes], seconds: float, rounds: int) -> Iterator[Result]:
    """Compare our server with --ray to the default server, and to Ray Serve without HAProxy: requests per second."""
    requests = {name: requests[name] for name in ("one sample", "100 candidates")}
    targets = {}
    for name, haproxy in (("out of the box", "0"), ("--ray", "1")):
        with ExitStack() as stack:
            default = Target(stack.enter_context(our_server(folder)).port, requests)
            server = our_server(folder, "--ray", "--replicas", "2", RAY_SERVE_ENABLE_HA_PROXY=haproxy)
            ray = Target(stack.enter_context(server).port, requests)
            measure([default, ray], seconds, rounds)
            targets[name] = (ray, default)
    for request in requests:
        (ray, default), (out_of_the_box, _) = targets["--ray"], targets["out of the box"]
        for peer, target, least in (
            ("default server", default, MIN_SHARE_UNDER_RAY),
            ("Ray Serve out of the box", out_of_the_box, MIN_OVER_RAY_SERVE),
        ):
            rates = ray.rate(request), target.rate(request)
            name, holds = f"requests with --ray, {request}", rates[0] >= least * rates[1]
            yield Result(name, rates[0], "/s", peer, rates[1], f">= {least:g}", holds)


if __name__ == "__main__":
    main()
