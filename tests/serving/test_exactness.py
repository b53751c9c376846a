"""One model, every way to ask: batch prediction of the run and of its export, JSON, Arrow and rankings agree on all
test rows of MovieLens-100K, and also where half of their fields are removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from asymdiffrec.serving.app import Limits
from asymdiffrec.serving.protocol import ARROW, stream_of
from asymdiffrec.serving.service_config import ServiceConfig

TOLERANCE = 1e-5
AT_ONCE = 2_500


@pytest.fixture(scope="module")
def folder(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, run/ and export/"""
    from rich.console import Console

    from asymdiffrec.datasets.prepare.movielens.dataset import prepare_movielens
    from asymdiffrec.trainer.fit.train import train_job
    from asymdiffrec.trainer.inference.export import export_run
    from asymdiffrec.trainer.job import read_job, read_statistics
    from asymdiffrec.trainer.run import Run

    made, quiet = tmp_path_factory.mktemp("movielens"), Console(quiet=True)
    prepare_movielens(made / "data", input=data_folder / "movielens-100k")
    job = read_job(made / "data" / "job.yaml", ["train.epochs=1"])
    train_job(job, read_statistics(job), Run(made / "run"), quiet)
    export_run(made / "run", made / "export", "fp32", quiet)
    return made


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    service = ServiceConfig(folder / "export", Limits(body=64 << 20)).service(print)
    with TestClient(service.application()) as client:
        yield client


@pytest.mark.parametrize("removed", [0.0, 0.5])
def test_every_way_to_ask_agrees(
    folder: Path, client: TestClient, command: Callable[..., Any], tmp_path: Path, removed: float
) -> None:
    columns = client.get("/v1/model").json()["columns"]
    table, rng = pq.read_table(folder / "data" / "test").select(columns), np.random.default_rng(0)
    for place, name in enumerate(columns):
        gone = pa.array(rng.random(len(table)) < removed)
        kept = pc.if_else(gone, pa.scalar(None, table[name].type), table[name])
        table = table.set_column(place, name, kept)
    assert len(table) == 10_000
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "part.parquet", row_group_size=3_000)
    scores = {}
    for model in ("run", "export"):
        out = tmp_path / f"{model}.parquet"
        assert command("predict", folder / model, tmp_path / "data", out).status == 0
        scores[model] = pq.read_table(out)["score"].to_numpy()

    shared = [name for name in columns if name.startswith("user") or name in ("age", "gender", "history", "hour")]
    samples = table.to_pylist()
    found: dict[str, list[np.ndarray]] = {"JSON": [], "Arrow": [], "rankings": []}
    for start in range(0, len(samples), AT_ONCE):
        some = samples[start : start + AT_ONCE]
        answer = client.post("/v1/score", json={"samples": some, "missing": False})
        found["JSON"].append(answer.json()["scores"])
        content = stream_of(table.slice(start, AT_ONCE))
        answer = client.post("/v1/score", content=content, headers={"content-type": ARROW})
        found["Arrow"].append(pa.ipc.open_stream(answer.content).read_all()["score"].to_numpy())
        queries = [
            {
                "shared": {name: value for name, value in one.items() if name in shared},
                "candidates": [{name: value for name, value in one.items() if name not in shared}],
            }
            for one in some
        ]
        found["rankings"].append([one["scores"][0] for one in client.post("/v1/rank", json=queries).json()])
    scores |= {name: np.concatenate(parts) for name, parts in found.items()}
    for name, own in scores.items():
        np.testing.assert_allclose(own, scores["run"], atol=TOLERANCE, err_msg=name)
