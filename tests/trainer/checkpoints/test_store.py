"""Checkpoints: loading restores the saved state, damage is noticed, and a failed save harms nothing."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asymdiffrec.datasets.batching.batch import Batch
from asymdiffrec.trainer.checkpoints.progress import Progress
from asymdiffrec.trainer.checkpoints.saver import Saver
from asymdiffrec.trainer.checkpoints.store import Checkpoints
from asymdiffrec.trainer.errors import CheckpointError
from asymdiffrec.trainer.job import CheckpointsConfig
from asymdiffrec.trainer.train_state import TrainState
from tests.trainer.checkpoints.models import Build, are_equal, optimizer_states, overwrite, train, weights

DOCUMENTS = {"job.yaml": "name: clicks"}


def save_once(checkpoints: Checkpoints, train_state: TrainState, progress: Progress, **settings: Any) -> str:
    """Save once. Return the error if the save failed, else ""."""
    with Saver(checkpoints, train_state, DOCUMENTS, CheckpointsConfig(keep=9, **settings), Progress()) as saver:
        saver.save(progress)
        assert saver.finish() in (None, progress)
        return saver.failure


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad", "sgd"])
@pytest.mark.parametrize("background", [True, False])
def test_a_loaded_model_is_the_saved_one_bit_for_bit(
    train_state: Build, batches: list[Batch], tmp_path: Path, optimizer: str, background: bool
) -> None:
    ours, other = (train_state(f"tables.optimizer={{name: {optimizer}}}") for _ in range(2))
    train(ours, batches[:2])
    progress = Progress(
        step=2, best_step=1, best_value=1 / 3, validations_since_best=1, mean_losses={"loss": 0.1}, counted_steps=2
    )
    checkpoints = Checkpoints(str(tmp_path))
    assert save_once(checkpoints, ours, progress, background=background) == ""
    assert (tmp_path / "step-2" / "job.yaml").read_text() == DOCUMENTS["job.yaml"]

    overwrite(weights(other) | optimizer_states(other))
    assert checkpoints.load(2, other) == checkpoints.progress(2) == progress
    assert are_equal(weights(other), weights(ours))
    assert are_equal(optimizer_states(other), optimizer_states(ours))
    assert train(other, batches) == train(ours, batches)
    assert are_equal(weights(other), weights(ours))


def test_weights_alone_load_with_any_optimizer(train_state: Build, batches: list[Batch], tmp_path: Path) -> None:
    ours, other = train_state(), train_state("tables.optimizer={name: sgd}")
    train(ours, batches[:1])
    checkpoints = Checkpoints(str(tmp_path))
    save_once(checkpoints, ours, Progress(step=1))
    overwrite(weights(other))
    before = {name: state.clone() for name, state in optimizer_states(other).items()}
    checkpoints.load_weights(1, other)
    assert are_equal(weights(other), weights(ours))
    assert are_equal(optimizer_states(other), before)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_save_does_not_harm_the_last_good_checkpoint(
    train_state: Build, batches: list[Batch], tmp_path: Path
) -> None:
    checkpoints, ours = Checkpoints(str(tmp_path)), train_state()
    save_once(checkpoints, ours, Progress(step=1))
    train(ours, batches[:1])
    with small_disk(50_000):
        assert "step-2: cannot be written: " in save_once(checkpoints, ours, Progress(step=2, best_step=2))
    assert checkpoints.steps() == [1]

    other = train_state()
    assert checkpoints.load(1, other) == Progress(step=1)
    assert are_equal(weights(other), weights(train_state()))
    assert save_once(checkpoints, ours, Progress(step=2)) == ""
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.load(2, other) == Progress(step=2)
    assert are_equal(weights(other), weights(ours))


def test_only_the_newest_and_the_best_checkpoints_are_kept(train_state: Build, tmp_path: Path) -> None:
    ours, checkpoints = train_state(), Checkpoints(str(tmp_path))
    (tmp_path / "step-7").mkdir()  # the remains of an interrupted save
    with Saver(checkpoints, ours, {}, CheckpointsConfig(keep=2), Progress()) as saver:
        for step in (1, 2, 3, 10):
            saver.save(Progress(step=step, best_step=min(step, 2), best_value=0.5))
            assert saver.finish() is None
            assert saver.saved.step == step
    assert checkpoints.steps() == [2, 3, 10]
    assert {folder.name for folder in tmp_path.iterdir()} == {"step-2", "step-3", "step-10"}
    assert checkpoints.best() == 2


def cut(file: Path) -> None:
    """Cut off the end of a file."""
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (cut, "__0_0.distcp", r"__0_0.distcp has [\d,]+ of [\d,]+ bytes"),
        (flip, "__0_0.distcp", "__0_0.distcp was altered"),
        (Path.unlink, "__0_0.distcp", "__0_0.distcp is missing"),
        (flip, ".metadata", ".metadata was altered"),
        (flip, "job.yaml", "job.yaml was altered"),
        (cut, "manifest.json", "cannot be loaded: "),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_used(
    train_state: Build, tmp_path: Path, damage: Callable[[Path], None], file: str, message: str
) -> None:
    ours, checkpoints, reports = train_state(), Checkpoints(str(tmp_path)), list[str]()
    assert checkpoints.newest_good(reports.append) is None
    for step in (1, 2):
        save_once(checkpoints, ours, Progress(step=step))
    assert checkpoints.newest_good(reports.append) == 2
    assert not reports
    damage(tmp_path / "step-2" / file)
    assert checkpoints.newest_good(reports.append) == 1
    (line,) = reports
    assert re.search(message, line), line
    assert line.endswith("; training continues from the previous checkpoint")


def test_a_checkpoint_that_does_not_fit_is_an_error(train_state: Build, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    save_once(checkpoints, train_state(), Progress(step=1))
    with pytest.raises(CheckpointError, match="step-9: cannot be loaded"):
        checkpoints.load(9, train_state())
    with pytest.raises(CheckpointError, match="step-1: cannot be loaded"):
        checkpoints.load(1, train_state("tables.embedding_dim=8"))
