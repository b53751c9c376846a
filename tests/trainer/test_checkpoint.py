"""Checkpoints: what they bring back, and what a failed one leaves."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor import ShardedTensor

from asymdiffrec.cluster.launch import ClusterConfig, process_group
from asymdiffrec.datasets.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.embeddings.state import table_state
from asymdiffrec.trainer.build import Trainee, build, pipeline, worker_device
from asymdiffrec.trainer.checkpoint import CheckpointError, Progress, load, load_weights, read_progress, save
from asymdiffrec.trainer.job import read_job, read_learned
from asymdiffrec.trainer.run import Run

Build = Callable[..., Trainee]


@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1), higher=st.booleans())
@settings(derandomize=True)
def test_progress_knows_the_first_best_validation(values: list[float], higher: bool) -> None:
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress = replace(progress, step=10 * number).validated(value, higher)
    best = (max if higher else min)(values)
    first = values.index(best) + 1
    assert progress == Progress(10 * len(values), 10 * first, best, len(values) - first)


@pytest.fixture(scope="module")
def batches(clicks: Path) -> list[Batch]:
    job = read_job(clicks / "job.yaml", ["train.batch_size=256"])
    schema = job.to_schema(read_learned(job))
    reader = TrainingReader(schema, open_shards(job.location("train")), job.train.seed, job.train.batch_size)
    return list(islice(reader.batches(reader.position(0)), 3))


@pytest.fixture
def trainee(clicks: Path) -> Iterator[Build]:
    """Builds a model of the small data set with settings, within a process group of this process alone."""

    def make(*settings: str) -> Trainee:
        job = read_job(clicks / "job.yaml", ["train.batch_size=256", *settings])
        return build(job, job.to_schema(read_learned(job)), worker_device())

    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_node=True):
        yield make


def train(trainee: Trainee, batches: list[Batch]) -> list[float]:
    progress, stream = pipeline(trainee).progress, iter(batches)
    return [float(progress(stream)["loss"]) for _ in batches]


def weights(trainee: Trainee) -> dict[str, torch.Tensor]:
    """Every weight and buffer of the model."""
    return whole(trainee.model.state_dict())


def states(trainee: Trainee) -> dict[str, torch.Tensor]:
    """The state of both optimizers."""
    tables = table_state(trainee.model, trainee.tables_optimizer, trainee.job.tables.optimizer)
    dense = {
        f"{name}.{key}": value
        for name, parameter in trainee.dense.items()
        for key, value in trainee.dense_optimizer.state[parameter].items()
    }
    return whole({name: state for name, state in tables.items() if not name.endswith(".weight")} | dense)


def whole(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The live tensors, of which this process holds every row and column."""
    sharded = {name: tensor.local_tensor() for name, tensor in tensors.items() if isinstance(tensor, ShardedTensor)}
    return {**tensors, **sharded}


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(-7)


def equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "sgd"])
def test_a_loaded_job_is_the_saved_one_bit_for_bit(
    trainee: Build, batches: list[Batch], tmp_path: Path, optimizer: str
) -> None:
    ours, other = (trainee(f"tables.optimizer={{name: {optimizer}}}") for _ in range(2))
    train(ours, batches[:2])
    progress = Progress(step=2, best_step=1, best_value=1 / 3, waited=1)
    save(tmp_path / "step-2", ours, progress)

    spoil(weights(other) | states(other))
    assert load(tmp_path / "step-2", other) == read_progress(tmp_path / "step-2") == progress
    assert equal(weights(other), weights(ours))
    assert equal(states(other), states(ours))
    assert train(other, batches) == train(ours, batches)
    assert equal(weights(other), weights(ours))


def test_weights_alone_fit_whatever_optimizer(trainee: Build, batches: list[Batch], tmp_path: Path) -> None:
    ours, other = trainee(), trainee("tables.optimizer={name: sgd}")
    train(ours, batches[:1])
    save(tmp_path / "step-1", ours, Progress(step=1))
    spoil(weights(other))
    before = {name: state.clone() for name, state in states(other).items()}
    load_weights(tmp_path / "step-1", other)
    assert equal(weights(other), weights(ours))
    assert equal(states(other), before)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_save_leaves_the_last_good_checkpoint(trainee: Build, batches: list[Batch], tmp_path: Path) -> None:
    run, ours = Run(tmp_path), trainee()
    save(run.checkpoint(1), ours, Progress(step=1))
    train(ours, batches[:1])
    for step in (1, 2):
        with pytest.raises(CheckpointError, match="cannot be written"), small_disk(50_000):
            save(run.checkpoint(step), ours, Progress(step=step, best_step=step))
    assert run.steps() == [1]

    other = trainee()
    assert load(run.checkpoint(1), other) == Progress(step=1)
    assert equal(weights(other), weights(trainee()))
    save(run.checkpoint(2), ours, Progress(step=2))
    assert run.steps() == [1, 2]
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == [
        "step-1",
        "step-1.partial",
        "step-2",
    ]
    assert load(run.checkpoint(2), other) == Progress(step=2)
    assert equal(weights(other), weights(ours))


def test_a_checkpoint_that_cannot_be_loaded_says_so(trainee: Build, tmp_path: Path) -> None:
    ours = trainee()
    save(tmp_path / "step-1", ours, Progress(step=1))
    with pytest.raises(CheckpointError, match="step-9: cannot be loaded"):
        load(tmp_path / "step-9", ours)
    with pytest.raises(CheckpointError, match="step-1: cannot be loaded"):
        load(tmp_path / "step-1", trainee("tables.embedding_dim=8"))
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-2")
    (file,) = (tmp_path / "step-2").glob("*.distcp")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="step-2: cannot be loaded"):
        load(tmp_path / "step-2", ours)
