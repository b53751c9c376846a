from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from starlette.testclient import TestClient

from asymdiffrec.serving.app import Limits, Service
from asymdiffrec.serving.reloader import Reloader
from asymdiffrec.trainer.inference.predict import predict_run


@pytest.fixture(scope="session")
def make_service(exported: Path) -> Callable[..., Service]:
    """Return a function that starts a service of the export, with a token and limits."""

    def make(token: str | None = None, **limits: int) -> Service:
        reloader = Reloader(exported)
        reloader.load()
        return Service(reloader, Limits(**limits), token, threads=2)

    return make


@pytest.fixture(scope="module")
def client(make_service: Callable[..., Service]) -> Iterator[TestClient]:
    """A client of the application, with default limits and without a token."""
    with TestClient(make_service().application()) as client:
        yield client


@pytest.fixture(scope="session")
def predicted(clicks: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The test split with its scores by batch prediction in the column `score`."""
    out = tmp_path_factory.mktemp("predicted") / "scores.parquet"
    predict_run(exported, str(clicks / "test"), out, Console(quiet=True))
    return pq.read_table(out)


@pytest.fixture(scope="session")
def samples(predicted: pa.Table) -> pa.Table:
    """The samples of the test split."""
    return predicted.drop_columns(["score"])
