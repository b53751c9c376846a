"""Fixtures that many tests share: prepared data, a trained run, its export, a Ray cluster, and the command line."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Turn the garbage collector on again after `plan`, which turns it off because its process ends soon."""
    yield
    gc.enable()
    atexit.unregister(gc.freeze)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Use one thread. With small tensors more threads are not faster, and much slower on a busy host."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real data, such as movielens-100k/ and adult/, from ASYMDIFFREC_DATA."""
    folder = os.environ.get("ASYMDIFFREC_DATA")
    if not folder:
        pytest.skip("set ASYMDIFFREC_DATA to a folder with real data")
    return Path(folder)


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, written by `prepare synthetic`. Tests only read it."""
    from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic

    folder = tmp_path_factory.mktemp("prepared") / "clicks"
    prepare_synthetic(folder, rows=6010)  # evaluation uses 601 rows, a prime: no number of workers divides it
    return folder


@pytest.fixture(scope="session")
def script() -> Path:
    """The installed command."""
    return Path(sys.executable).with_name("asymdiffrec")


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options of a short run: two epochs of 18 steps."""
    overrides = ["train.batch_size=256", "train.epochs=2", "train.log_every=5"]
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture(scope="session")
def trained(clicks: Path, script: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a short run. Tests only read it."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    subprocess.run([script, "train", clicks / "job.yaml", "--run", run, *small], check=True, capture_output=True)
    return run


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the short run, in fp32."""
    from rich.console import Console

    from asymdiffrec.trainer.inference.export import export_run

    folder = tmp_path_factory.mktemp("exports") / "fp32"
    export_run(trained, folder, "fp32", Console(quiet=True))
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A small Ray cluster on this host, for all tests that need workers."""
    from asymdiffrec.cluster.launch import stay_on_loopback

    stay_on_loopback()
    import ray

    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Outcome:
    """The result of a command: exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on standard output."""
        return json.loads(self.out)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """A function that runs a command line in this process. It calls the same function as the installed script."""
    from asymdiffrec.trainer.commands import cli

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["asymdiffrec", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                status = int(end.code or 0)
        return Outcome(status, out.getvalue(), err.getvalue())

    return run
