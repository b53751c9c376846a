"""All ways to score one model agree on all test rows of MovieLens-100K, complete and with half of the fields removed.

These are batch prediction with the run and with its export, and requests for scores as JSON and Arrow and for rankings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from starlette.testclient import TestClient

from asymdiffrec.datasets.prepare.movielens.dataset import prepare_movielens
from asymdiffrec.serving.app import Limits
from asymdiffrec.serving.arrow_stream import write_stream
from asymdiffrec.serving.protocol import ARROW
from asymdiffrec.serving.service_config import ServiceConfig
from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.inference.export import export_run
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.run import Run

TOLERANCE = 1e-5
ROWS_PER_REQUEST = 2_500


@pytest.fixture(scope="module")
def folder(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, run/ and export/ of MovieLens-100K."""
    folder, quiet = tmp_path_factory.mktemp("movielens"), Console(quiet=True)
    prepare_movielens(folder / "data", input=data_folder / "movielens-100k")
    job = read_job(folder / "data" / "job.yaml", ["train.epochs=1"])
    train_job(job, read_statistics(job), Run(folder / "run"), quiet)
    export_run(folder / "run", folder / "export", "fp32", quiet)
    return folder


@pytest.fixture(scope="module")
def movielens_client(folder: Path) -> Iterator[TestClient]:
    service = ServiceConfig(folder / "export", Limits(body_bytes=64 << 20)).start(print)
    with TestClient(service.application()) as client:
        yield client


@pytest.mark.parametrize("removed", [0.0, 0.5])
def test_all_ways_to_score_agree(
    folder: Path, movielens_client: TestClient, command: Callable[..., Any], tmp_path: Path, removed: float
) -> None:
    client = movielens_client
    columns = client.get("/v1/model").json()["columns"]
    table, rng = pq.read_table(folder / "data" / "test").select(columns), np.random.default_rng(0)
    for index, name in enumerate(columns):
        drop = pa.array(rng.random(len(table)) < removed)
        values = pc.if_else(drop, pa.scalar(None, table[name].type), table[name])
        table = table.set_column(index, name, values)
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
    parts: dict[str, list[np.ndarray]] = {"JSON": [], "Arrow": [], "rankings": []}
    for start in range(0, len(samples), ROWS_PER_REQUEST):
        part = samples[start : start + ROWS_PER_REQUEST]
        response = client.post("/v1/score", json={"samples": part, "missing": False})
        parts["JSON"].append(response.json()["scores"])
        content = write_stream(table.slice(start, ROWS_PER_REQUEST))
        response = client.post("/v1/score", content=content, headers={"content-type": ARROW})
        parts["Arrow"].append(pa.ipc.open_stream(response.content).read_all()["score"].to_numpy())
        queries = [
            {
                "shared": {name: value for name, value in sample.items() if name in shared},
                "candidates": [{name: value for name, value in sample.items() if name not in shared}],
            }
            for sample in part
        ]
        rankings = client.post("/v1/rank", json=queries).json()
        parts["rankings"].append([ranking["scores"][0] for ranking in rankings])
    scores |= {name: np.concatenate(arrays) for name, arrays in parts.items()}
    for name, other_scores in scores.items():
        np.testing.assert_allclose(other_scores, scores["run"], atol=TOLERANCE, err_msg=name)
