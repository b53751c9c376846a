"""Serving: requests a second and milliseconds of one sample and of a hundred candidates, against a plain server of the
same model, bare calls and Ray Serve; and rows a second of batch prediction against the model's bare forward pass."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from asymdiffrec.datasets.batching.batch import split_into_batches
from asymdiffrec.datasets.decoding.ids import decode_ids
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic
from asymdiffrec.embeddings.torchrec_warnings import silence_torchrec_warnings
from asymdiffrec.serving.arrow_stream import write_stream
from asymdiffrec.serving.engine import Engine
from asymdiffrec.serving.export import load_export
from asymdiffrec.serving.protocol import ARROW, JSON
from asymdiffrec.trainer.inference.predict import EXPORT_BATCH_SIZE, predict_run
from benchmarks._load import Load, post, saturate, steady
from benchmarks._report import alternate, arguments, show
from benchmarks._result import Result
from benchmarks._servers import ROOT, plainly_served, ready, replicas, served, wait

CANDIDATES = 100
ROUNDS = 5
SWAPS, KILLS = 20, 10
PREDICTED_ROWS = 500_000
"""For each core"""


@dataclass
class Server:
    port: int
    requests: Mapping[str, bytes]
    """By what is asked"""
    loads: dict[str, list[Load]] = field(default_factory=dict)

    def rate(self, asked: str) -> float:
        return statistics.median(load.rate for load in self.loads[asked])

    def failed(self) -> int:
        """Also those that a second request was answered for: nothing breaks here."""
        return sum(load.failed + load.again for loads in self.loads.values() for load in loads)


def main() -> None:
    silence_torchrec_warnings()
    options = arguments(
        __doc__ or "", ray={"action": "store_true", "help": "also under Ray Serve, which takes minutes"}
    )
    seconds, rounds = (0.5, 1) if options.quick else (4.0, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="asymdiffrec-") as temporary:
        folder = Path(temporary)
        data = trained(folder, rows=3_000 if options.quick else 40_000)
        show(results(folder, data, seconds, rounds, options.ray), options)


def trained(folder: Path, rows: int) -> Path:
    """A data set, whose short run is exported to folder/export."""
    data = folder / "data"
    prepare_synthetic(data, rows=rows)
    run = [sys.executable, "-m", "asymdiffrec"]
    settings = ["--set", "train.epochs=1", "--set", "train.batch_size=256"]
    subprocess.run(
        [*run, "train", data / "job.yaml", "--run", folder / "run", *settings],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    subprocess.run([*run, "export", folder / "run", folder / "export"], cwd=ROOT, check=True, capture_output=True)
    return data


def results(folder: Path, data: Path, seconds: float, rounds: int, under_ray: bool) -> Iterator[Result]:
    export = load_export(folder / "export")
    engine = Engine(export)
    table = pq.read_table(data / "test").select(export.schema.columns(labelled=False)).slice(0, CANDIDATES)
    ours, plain = bodies(engine, table)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary(engine, data)))
    with ExitStack() as stack:
        start = stack.enter_context
        default = Server(start(served(folder)), ours)
        compiled = Server(start(served(folder, "--compile")), ours)
        peer = Server(start(plainly_served(folder)), plain)
        require_same_scores(default, peer)
        require_same_scores(compiled, peer)
        measure([default, compiled, peer], seconds, rounds)
        assert not compiled.failed(), f"{compiled.failed()} requests failed"
        yield from against_plain(default, peer)
        yield from at_half_the_load([default, compiled, peer], seconds, rounds)
        yield from against_calls(engine, table, default)
        for asked in ours:
            yield Result(
                f"requests with --compile, {asked}", compiled.rate(asked), "/s", "default server", default.rate(asked)
            )
    yield from swaps(folder, ours["one sample"], 2 if rounds == 1 else SWAPS)
    if under_ray:
        yield from with_ray(folder, ours, seconds, rounds)
        yield from kills(folder, ours["one sample"])
    yield from offline(folder, data, rounds)


def bodies(engine: Engine, table: pa.Table) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What is asked of our server, and of the plain one: each as it reads it best."""
    samples = table.to_pylist()
    schema = engine.schema
    shared = [schema.column(name) for name, one in schema.fields.items() if one.group in ("user", "context")]
    common = {name: samples[0][name] for name in shared}
    own = table.drop_columns(shared)
    hundred = [common | one for one in own.to_pylist()]
    query = orjson.dumps({"shared": common, "candidates": own.to_pydict()})
    described = own.replace_schema_metadata({"shared": orjson.dumps(common)})
    one = orjson.dumps({"samples": samples[:1]})
    ours = {
        "one sample": post("/v1/score", one, JSON),
        "100 candidates": post("/v1/rank", query, JSON),
        "100 candidates, Arrow": post("/v1/rank", write_stream(described), ARROW),
        "100 samples": post("/v1/score", orjson.dumps({"samples": hundred, "missing": False}), JSON),
    }
    whole = post("/score", orjson.dumps({"samples": hundred}), JSON)
    plain = {"one sample": post("/score", one, JSON)} | dict.fromkeys(
        [name for name in ours if name != "one sample"], whole
    )
    return ours, plain


def vocabulary(engine: Engine, data: Path) -> dict[str, dict[str, int]]:
    """Of each column of strings, the row of each string of the training split."""
    schema, found = engine.schema, {}
    for name, one in schema.sparse.items():
        if one.values == "string":
            column = schema.column(name)
            values = pa.array(pq.read_table(data / "train", columns=[column])[column].drop_null().unique().to_pylist())
            rows = decode_ids(values, schema.table_of(name), None, column)
            found[column] = dict(zip(values.to_pylist(), rows.tolist(), strict=True))
    return found


def require_same_scores(ours: Server, plain: Server) -> None:
    told = [
        httpx2.post(
            f"http://127.0.0.1:{server.port}{path}",
            content=server.requests[asked].partition(b"\r\n\r\n")[2],
            headers={"content-type": JSON},
        ).json()
        for server, path, asked in (
            (ours, "/v1/score", "100 samples"),
            (plain, "/score", "100 samples"),
            (ours, "/v1/rank", "100 candidates"),
        )
    ]
    expected = np.array(told[1]["scores"])
    np.testing.assert_allclose(told[0]["scores"], expected, atol=1e-5)
    np.testing.assert_allclose(told[2]["scores"], expected[told[2]["candidates"]], atol=1e-5)


def measure(servers: list[Server], seconds: float, rounds: int) -> None:
    """In turn, so that a drift of the machine's speed meets all of them; the first round warms up."""
    for number in range(rounds + 1):
        for server in servers:
            for asked, request in server.requests.items():
                load = saturate(server.port, request, seconds / 4 if number == 0 else seconds)
                if number:
                    server.loads.setdefault(asked, []).append(load)


def against_plain(ours: Server, plain: Server) -> Iterator[Result]:
    goals = {"one sample": 1.3, "100 candidates": 2.0}
    for asked in ours.requests:
        rates, goal = (ours.rate(asked), plain.rate(asked)), goals.get(asked)
        holds = None if goal is None else rates[0] >= goal * rates[1]
        yield Result(
            f"requests, {asked}", rates[0], "/s", "plain server", rates[1], f">= {goal}" if goal else "", holds
        )
    assert not ours.failed(), f"{ours.failed()} requests failed"


def at_half_the_load(servers: Sequence[Server], seconds: float, rounds: int) -> Iterator[Result]:
    """Of the default server, with and without machine code, and of the plain one, each at half of its own rate; the
    median of the rounds, for the machine itself stands still at times."""
    for asked in ("one sample", "100 candidates"):
        loads = [
            [steady(one.port, one.requests[asked], one.rate(asked) / 2, seconds) for one in servers]
            for _ in range(rounds)
        ]
        for share in (0.5, 0.99):
            default, compiled, plain = (
                statistics.median(load.quantile(share) for load in own) for own in zip(*loads, strict=True)
            )
            name, is_goal = f"p{100 * share:g} at half the load, {asked}", asked == "one sample" and share == 0.99
            goal = ("< 10 ms", default < 10) if is_goal else ("", None)
            yield Result(name, default, "ms", "plain server", plain, *goal)
            yield Result(f"{name}, --compile", compiled, "ms", "plain server", plain)


def against_calls(engine: Engine, table: pa.Table, ours: Server) -> Iterator[Result]:
    for asked, rows in (("one sample", 1), ("100 samples", CANDIDATES)):
        samples = table.slice(0, rows).to_pylist()
        taken, _ = alternate(partial(_call, engine, samples), lambda: None, 200)
        yield Result(f"requests, {asked}", ours.rate(asked), "/s", "calls of a function", 1 / taken)


def _call(engine: Engine, samples: list[dict[str, Any]]) -> None:
    engine.score(engine.request_schema.table(samples))


def with_ray(folder: Path, requests: Mapping[str, bytes], seconds: float, rounds: int) -> Iterator[Result]:
    requests = {asked: requests[asked] for asked in ("one sample", "100 candidates")}
    found = {}
    for name, haproxy in (("out of the box", "0"), ("--ray", "1")):
        with ExitStack() as stack:
            default = Server(stack.enter_context(served(folder)), requests)
            ray = Server(
                stack.enter_context(served(folder, "--ray", "--replicas", "2", RAY_SERVE_ENABLE_HA_PROXY=haproxy)),
                requests,
            )
            measure([default, ray], seconds, rounds)
            found[name] = (ray, default)
    for asked in requests:
        (ray, default), (box, _) = found["--ray"], found["out of the box"]
        rate = ray.rate(asked)
        yield Result(
            f"requests with --ray, {asked}",
            rate,
            "/s",
            "default server",
            default.rate(asked),
            ">= 0.6",
            rate >= 0.6 * default.rate(asked),
        )
        yield Result(
            f"requests with --ray, {asked}",
            rate,
            "/s",
            "Ray Serve out of the box",
            box.rate(asked),
            ">= 5",
            rate >= 5 * box.rate(asked),
        )


def swaps(folder: Path, request: bytes, count: int) -> Iterator[Result]:
    """Versions that are swapped under load, each once the one before is live."""
    other, link = folder / "rounded", folder / "live"
    command = [sys.executable, "-m", "asymdiffrec", "export", str(folder / "run"), str(other), "--tables", "int8"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    versions = {one: load_export(one).manifest.version for one in (folder / "export", other)}
    point(link, folder / "export")
    with served(folder, model=link) as port, ThreadPoolExecutor(1) as pool:
        load = pool.submit(steady, port, request, 100, 4 * count, right=right(request, *versions))
        for number in range(count):
            target = list(versions)[(number + 1) % 2]
            point(link, target)
            wait(lambda target=target: ready(port).get("version") == versions[target])  # type: ignore[misc]
        found = load.result()
    worst = found.quantile(1)
    yield Result(f"worst answer under {count} swaps", worst, "ms", "asked", 200, "< 200 ms", worst < 200)
    yield at_once(found, f"{count} swaps", "all")


def kills(folder: Path, request: bytes) -> Iterator[Result]:
    """Replicas that are killed under load, each once all are there again."""
    with served(folder, "--ray", "--replicas", "2") as port, ThreadPoolExecutor(1) as pool:
        load = pool.submit(steady, port, request, 100, 25 * KILLS, right=right(request, folder / "export"))
        back = []
        for _ in range(KILLS):
            wait(lambda: len(replicas()) == 2)
            time.sleep(2)  # so that HAProxy knows both of them
            gone = replicas()[0]
            gone.kill()
            start = time.monotonic()
            wait(lambda gone=gone: len(set(replicas()) - {gone}) == 2)  # type: ignore[misc]
            back.append(time.monotonic() - start)
        found = load.result()
    yield Result(f"slowest of {KILLS} replicas to come back", max(back), "s", "asked", 20, "< 20 s", max(back) < 20)
    under, answers = f"{KILLS} kills", len(found.seconds)
    yield at_once(found, under)
    yield Result(f"right answers, {under}", answers, "", "requests", answers + found.failed, "all", not found.failed)


def right(request: bytes, *exports: Path) -> Callable[[bytes], bool]:
    """Whether an answer's scores are those of its version, which is one of these."""
    samples = orjson.loads(request.partition(b"\r\n\r\n")[2])["samples"]
    engines = [Engine(load_export(folder)) for folder in exports]
    expected = {one.version: one.score(one.request_schema.table(samples)).scores for one in engines}

    def holds(body: bytes) -> bool:
        told = orjson.loads(body)
        return np.allclose(told["scores"], expected[told["version"]], atol=1e-5)

    return holds


def at_once(load: Load, under: str, goal: str = "") -> Result:
    """Requests that were answered rightly when they were sent first."""
    asked = len(load.seconds) + load.failed
    answered = len(load.seconds) - load.again
    return Result(
        f"right answers at once, {under}", answered, "", "requests", asked, goal, answered == asked if goal else None
    )


def point(link: Path, folder: Path) -> None:
    other = link.with_name("other")
    other.symlink_to(folder)
    other.rename(link)


def offline(folder: Path, data: Path, rounds: int) -> Iterator[Result]:
    """Of a file of some seconds' rows, and the forward pass over batches of as many, decoded before."""
    export = load_export(folder / "export")
    schema, cores = export.schema, len(os.sched_getaffinity(0))
    part = pq.read_table(data / "train").select(schema.columns(labelled=False)).combine_chunks()
    copies = max(1, cores * (PREDICTED_ROWS if rounds > 1 else 1) // len(part))
    many = pa.concat_tables([part] * copies)
    pq.write_table(many, folder / "many.parquet", row_group_size=16 * EXPORT_BATCH_SIZE)
    rows = decode(part, schema, "", labelled=False)
    batches = list(split_into_batches(rows, schema, EXPORT_BATCH_SIZE)) * copies

    @torch.inference_mode()
    def forward(batch: Any) -> None:
        export.model.score(batch).sigmoid()

    def predicted() -> None:
        out = folder / "scores.parquet"
        out.unlink(missing_ok=True)
        predict_run(folder / "export", str(folder / "many.parquet"), out, Console(quiet=True))

    def passed() -> None:
        """As `predict_run` does: a thread for each core."""
        torch.set_num_threads(1)
        list(pool.map(forward, batches))
        torch.set_num_threads(cores)

    torch.set_num_threads(cores)
    with ThreadPoolExecutor(cores) as pool:
        predicting, bare = alternate(predicted, passed, rounds)
    rates = len(many) / predicting, len(many) / bare
    yield Result("rows of predict", rates[0], "/s", "bare forward pass", rates[1], ">= 0.8", rates[0] >= 0.8 * rates[1])


if __name__ == "__main__":
    main()
