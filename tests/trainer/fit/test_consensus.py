"""Bad steps, whose loss is not finite or too large: they change no parameter, and end training or are skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from asymdiffrec.cluster.config import ClusterConfig
from asymdiffrec.cluster.process_group import process_group
from asymdiffrec.datasets.reader import TrainingReader
from asymdiffrec.datasets.shards import open_shards
from asymdiffrec.trainer.checkpoints.tensors import Snapshot
from asymdiffrec.trainer.fit import pipeline as pipelines
from asymdiffrec.trainer.fit.consensus import MAX_BAD_STEPS
from asymdiffrec.trainer.fit.pipeline import OverlappedPipeline, build_pipeline
from asymdiffrec.trainer.job import read_job, read_statistics
from asymdiffrec.trainer.train_state import build_train_state, worker_device


def flat(state: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return copies of all tensors of a state by name."""
    return {
        f"{part}.{name}": getattr(tensor, "local_tensor", lambda tensor=tensor: tensor)().clone()
        for part, named in state.items()
        for name, tensor in named.items()
    }


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_step_without_update_changes_nothing(clicks: Path, overlapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes no weight and no moment (which a zero gradient would decay), and has no effect on later steps."""
    if overlapped:
        monkeypatch.setattr(
            pipelines,
            "PlainPipeline",
            lambda *arguments: OverlappedPipeline(*arguments, execute_all_batches=False),
        )
    job = read_job(clicks / "job.yaml", ["train.batch_size=256"])
    schema = job.to_schema(read_statistics(job))
    reader = TrainingReader(schema, open_shards(job.location("train")), job.train.seed, job.train.batch_size)
    first, bad, second, last = islice(reader.batches(reader.position(0)), 4)
    runs = []
    with process_group(dist.HashStore(), 0, 1, ClusterConfig(gpu=False), one_host=True):
        for batches, answers in (([first, bad, second], [True, False, True]), ([first, second], [True, True])):
            train_state = build_train_state(job, schema, worker_device())
            snapshot, answer, states = Snapshot(train_state), iter(answers), []
            train, stream = (
                build_pipeline(train_state, lambda loss, answer=answer: next(answer)),
                iter([*batches, last, last, last]),
            )
            for _ in batches:
                train.progress(stream)
                states.append(flat(snapshot.take()))
            runs.append(states)
    with_bad_step, without = runs
    assert all(torch.equal(with_bad_step[1][name], tensor) for name, tensor in with_bad_step[0].items())
    assert not all(torch.equal(with_bad_step[2][name], tensor) for name, tensor in with_bad_step[1].items())
    assert all(torch.equal(without[-1][name], tensor) for name, tensor in with_bad_step[-1].items())


@pytest.mark.parametrize(("on_nan", "step"), [("stop", 1), ("skip", MAX_BAD_STEPS)])
def test_a_diverged_loss_ends_training_and_names_its_samples(
    clicks: Path, tmp_path: Path, command: Callable[..., Any], small: list[str], on_nan: str, step: int
) -> None:
    run, settings = tmp_path / "run", ["--set", "train.max_loss=0.001", "--set", f"train.on_nan={on_nan}"]
    outcome = command("train", clicks / "job.yaml", "--run", run, *small, *settings)
    assert outcome.status == 1
    first = (step - 1) * 256
    assert f"samples {first:,} to {first + 255:,} of the run" in outcome.err.splitlines()[-1]
    assert f"at step {step} on worker 0" in outcome.err.splitlines()[-1]
    skipped = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "bad_samples" in line]
    assert len(skipped) == step - 1
    assert [record["bad_samples"] for record in skipped[:2]] == [[0, 255], [256, 511]][: step - 1]
