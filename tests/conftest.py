from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Small tensors gain nothing from more, and lose much on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data, such as movielens-100k/ and adult/, that ASYMDIFFREC_DATA names."""
    folder = os.environ.get("ASYMDIFFREC_DATA")
    if not folder:
        pytest.skip("ASYMDIFFREC_DATA names no folder with real data")
    return Path(folder)


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set, as `prepare synthetic` leaves it; tests read it and change nothing."""
    from asymdiffrec.datasets.prepare.synthetic.dataset import prepare_synthetic

    folder = tmp_path_factory.mktemp("prepared") / "clicks"
    prepare_synthetic(folder, rows=6010)  # 601 to evaluate: they divide among no number of workers
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small Ray cluster of this machine for all tests that want workers."""
    import ray

    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error", _node_ip_address="127.0.0.1"
    )
    yield
    ray.shutdown()
