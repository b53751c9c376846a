"""Checkpoints: what they bring back, and what a failed one leaves."""

from __future__ import annotations

import re
import resource
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

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.embeddings.state import table_state
from asymdiffrec.trainer.build import TrainState, build_train_state, worker_device
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.checkpoints.saver import Saver
from asymdiffrec.trainer.checkpoints.state import Snapshot, state
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.fit.pipeline import build_pipeline
from asymdiffrec.trainer.job import CheckpointsConfig, read_job, read_statistics

Build = Callable[..., TrainState]


@given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1), higher=st.booleans())
@settings(derandomize=True)
def test_standing_knows_the_first_best_validation(values: list[float], higher: bool) -> None:
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress = replace(progress, step=10 * number).validated(value, higher)
    best = (max if higher else min)(values)
    first = values.index(best) + 1
    assert progress == Progress(10 * len(values), 10 * first, best, len(values) - first)


@pytest.fixture(scope="module")
def batches(clicks: Path) -> list[Batch]:
    job = read_job(clicks / "job.yaml", ["train.batch_size=256"])
    schema = job.to_schema(read_statistics(job))
    reader = TrainingReader(schema, open_shards(job.location("train")), job.train.seed, job.train.batch_size)
    return list(islice(reader.batches(reader.position(0)), 3))


@pytest.fixture
def train_state(clicks: Path) -> Iterator[Build]:
    """Builds a model of the small data set with settings, within a process group of this process alone."""

    def make(*settings: str) -> TrainState:
        job = read_job(clicks / "job.yaml", ["train.batch_size=256", *settings])
        return build_train_state(job, job.to_schema(read_statistics(job)), worker_device())

    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True):
        yield make


def train(train_state: TrainState, batches: list[Batch]) -> list[float]:
    step, stream = build_pipeline(train_state).progress, iter(batches)
    return [float(step(stream)["loss"]) for _ in batches]


def weights(train_state: TrainState) -> dict[str, torch.Tensor]:
    """Every weight and buffer of the model."""
    return whole(train_state.model.state_dict())


def states(train_state: TrainState) -> dict[str, torch.Tensor]:
    """The state of both optimizers."""
    tables = table_state(train_state.model, train_state.tables_optimizer, train_state.job.tables.optimizer)
    dense = {
        f"{name}.{key}": value
        for name, parameter in train_state.dense.items()
        for key, value in train_state.dense_optimizer.state[parameter].items()
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


DOCUMENTS = {"job.yaml": "name: clicks"}


def saved(checkpoints: Checkpoints, train_state: TrainState, progress: Progress, **settings: Any) -> str:
    """Save once; returns why it failed."""
    with Saver(checkpoints, train_state, DOCUMENTS, CheckpointsConfig(keep=9, **settings), Progress()) as saver:
        saver.save(progress)
        assert saver.finish() in (None, progress)
        return saver.failure


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "sgd"])
@pytest.mark.parametrize("background", [True, False])
def test_a_loaded_job_is_the_saved_one_bit_for_bit(
    train_state: Build, batches: list[Batch], tmp_path: Path, optimizer: str, background: bool
) -> None:
    ours, other = (train_state(f"tables.optimizer={{name: {optimizer}}}") for _ in range(2))
    train(ours, batches[:2])
    progress = Progress(
        step=2, best_step=1, best_value=1 / 3, validations_since_best=1, mean_losses={"loss": 0.1}, counted_steps=2
    )
    checkpoints = Checkpoints(str(tmp_path))
    assert saved(checkpoints, ours, progress, background=background) == ""
    assert (tmp_path / "step-2" / "job.yaml").read_text() == DOCUMENTS["job.yaml"]

    spoil(weights(other) | states(other))
    assert checkpoints.load(2, other) == checkpoints.progress(2) == progress
    assert equal(weights(other), weights(ours))
    assert equal(states(other), states(ours))
    assert train(other, batches) == train(ours, batches)
    assert equal(weights(other), weights(ours))


def test_weights_alone_fit_whatever_optimizer(train_state: Build, batches: list[Batch], tmp_path: Path) -> None:
    ours, other = train_state(), train_state("tables.optimizer={name: sgd}")
    train(ours, batches[:1])
    checkpoints = Checkpoints(str(tmp_path))
    saved(checkpoints, ours, Progress(step=1))
    spoil(weights(other))
    before = {name: state.clone() for name, state in states(other).items()}
    checkpoints.load_weights(1, other)
    assert equal(weights(other), weights(ours))
    assert equal(states(other), before)


def test_a_snapshot_is_of_its_moment(train_state: Build, batches: list[Batch]) -> None:
    """Training goes on while one is written; the next one uses its memory."""
    ours = train_state()
    snapshot = Snapshot(ours)

    def copies(of: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for part in of.values() for name, tensor in whole(part).items()}

    taken = snapshot.take()
    before = copies(taken)
    train(ours, batches[:1])
    assert equal(copies(taken), before)
    assert not equal(copies(state(ours)), before)
    places = {name: tensor.data_ptr() for part in taken.values() for name, tensor in whole(part).items()}
    again = snapshot.take()
    assert equal(copies(again), copies(state(ours)))
    assert {name: tensor.data_ptr() for part in again.values() for name, tensor in whole(part).items()} == places


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_save_leaves_the_last_good_checkpoint(
    train_state: Build, batches: list[Batch], tmp_path: Path
) -> None:
    checkpoints, ours = Checkpoints(str(tmp_path)), train_state()
    saved(checkpoints, ours, Progress(step=1))
    train(ours, batches[:1])
    with small_disk(50_000):
        assert "step-2: cannot be written: " in saved(checkpoints, ours, Progress(step=2, best_step=2))
    assert checkpoints.steps() == [1]

    other = train_state()
    assert checkpoints.load(1, other) == Progress(step=1)
    assert equal(weights(other), weights(train_state()))
    assert saved(checkpoints, ours, Progress(step=2)) == ""
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.load(2, other) == Progress(step=2)
    assert equal(weights(other), weights(ours))


def test_only_the_newest_and_the_best_are_kept(train_state: Build, tmp_path: Path) -> None:
    ours, checkpoints = train_state(), Checkpoints(str(tmp_path))
    (tmp_path / "step-7").mkdir()  # of a save that was interrupted
    with Saver(checkpoints, ours, {}, CheckpointsConfig(keep=2), Progress()) as saver:
        for step in (1, 2, 3, 10):
            saver.save(Progress(step=step, best_step=min(step, 2), best_value=0.5))
            assert saver.finish() is None
            assert saver.saved.step == step
    assert checkpoints.steps() == [2, 3, 10]
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-2", "step-3", "step-10"}
    assert checkpoints.best() == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "file", "message"),
    [
        (cut, "__0_0.distcp", r"__0_0.distcp has [\d,]+ of [\d,]+ bytes"),
        (flip, "__0_0.distcp", "__0_0.distcp was altered"),
        (Path.unlink, "__0_0.distcp", "__0_0.distcp is missing"),
        (flip, ".metadata", ".metadata was altered"),
        (flip, "job.yaml", "job.yaml was altered"),
        (cut, "manifest.json", "cannot be loaded: "),
    ],
)
def test_the_one_before_a_damaged_checkpoint_is_taken_loudly(
    train_state: Build, tmp_path: Path, harm: Callable[[Path], None], file: str, message: str
) -> None:
    ours, checkpoints, said = train_state(), Checkpoints(str(tmp_path)), list[str]()
    assert checkpoints.newest_good(said.append) is None
    for step in (1, 2):
        saved(checkpoints, ours, Progress(step=step))
    assert checkpoints.newest_good(said.append) == 2
    assert not said
    harm(tmp_path / "step-2" / file)
    assert checkpoints.newest_good(said.append) == 1
    (line,) = said
    assert re.search(message, line), line
    assert line.endswith("; training goes on from the checkpoint before it")


def test_a_checkpoint_that_does_not_fit_says_so(train_state: Build, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    saved(checkpoints, train_state(), Progress(step=1))
    with pytest.raises(CheckpointError, match="step-9: cannot be loaded"):
        checkpoints.load(9, train_state())
    with pytest.raises(CheckpointError, match="step-1: cannot be loaded"):
        checkpoints.load(1, train_state("tables.embedding_dim=8"))
