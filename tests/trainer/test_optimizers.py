"""Dense parameters are updated like torch's optimizer does with averaged and clipped gradients."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.nn.utils import clip_grad_norm_
from torchrec.optim.keyed import CombinedOptimizer

from asymdiffrec.trainer.fit.train import train_job
from asymdiffrec.trainer.job import ScheduleConfig, TrainConfig, read_job, read_statistics
from asymdiffrec.trainer.optimizers import TrainOptimizer, learning_rate_factor
from asymdiffrec.trainer.run import Run
from tests.trainer.runs import records_without_times, stop_at

STEPS = 12


@given(
    st.integers(0, 50),
    st.sampled_from(["none", "linear", "cosine"]),
    st.floats(0, 1),
    st.integers(1, 200),
)
def test_learning_rates_grow_to_one_and_fall_to_the_end_factor(warmup: int, decay: Any, end: float, steps: int) -> None:
    schedule = ScheduleConfig(warmup_steps=warmup, decay=decay, end=end)
    rates = [learning_rate_factor(schedule, step, warmup + steps) for step in range(warmup + steps)]
    assert all(0 < factor <= 1 for factor in rates)
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert rates[warmup] == pytest.approx(1)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True)
    assert learning_rate_factor(schedule, warmup + steps, warmup + steps) == pytest.approx(
        1 if decay == "none" else end
    )


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    """Return a copy of all weights as one vector."""
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])


def gradients_of(step: int, model: torch.nn.Module) -> list[torch.Tensor]:
    """Return random gradients, a function of the step."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_updates_are_those_of_averaged_and_clipped_gradients(accumulate: int, clip: float | None) -> None:
    settings = TrainConfig(
        accumulate=accumulate, clip_norm=clip, schedule=ScheduleConfig(warmup_steps=4, decay="linear")
    )
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer, reference = (torch.optim.AdamW(model.parameters(), lr=0.1) for model in (ours, theirs))
    update = TrainOptimizer(CombinedOptimizer([]), optimizer, settings)
    for step in range(STEPS):
        before = weights_of(ours)
        update.begin(step, STEPS)
        update.zero_grad()
        for parameter, gradient in zip(ours.parameters(), gradients_of(step, ours), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        update.step()
        if (step + 1) % accumulate:
            assert torch.equal(weights_of(ours), before)
            continue
        window = [gradients_of(number, theirs) for number in range(step + 1 - accumulate, step + 1)]
        for index, parameter in enumerate(theirs.parameters()):
            parameter.grad = torch.stack([gradients[index] for gradients in window]).mean(dim=0)
        if clip is not None:
            assert clip_grad_norm_(theirs.parameters(), clip) > clip
        reference.param_groups[0]["lr"] = 0.1 * learning_rate_factor(settings.schedule, step, STEPS)
        reference.step()
        assert torch.allclose(weights_of(ours), weights_of(theirs), rtol=1e-5, atol=1e-7)
    assert not torch.equal(weights_of(ours), before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bad_steps_change_nothing(accumulate: int) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    update = TrainOptimizer(CombinedOptimizer([]), optimizer, TrainConfig(accumulate=accumulate))
    for step in range(2 * accumulate):
        before = weights_of(model)
        update.begin(step, STEPS)
        update.zero_grad()
        if step < accumulate:
            model(torch.ones(1, 3)).sum().backward()
        update.step()
    assert torch.equal(weights_of(model), before)


def train(clicks: Path, run: Path, *settings: str) -> list[dict[str, Any]]:
    """Train a few steps, and return the records of the steps."""
    job = read_job(clicks / "job.yaml", ["train.batch_size=128", "train.steps=20", "train.log_every=1", *settings])
    train_job(job, read_statistics(job), Run(run), console=Console(quiet=True))
    return [record for record in records_without_times(run) if "loss" in record]


def test_a_run_stopped_within_an_accumulation_continues_exactly(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = "train.schedule={warmup_steps: 4, decay: cosine, end: 0.1}"
    settings = ["train.accumulate=3", "train.clip_norm=0.1", schedule]
    undisturbed = train(clicks, tmp_path / "undisturbed", *settings)
    stop_at(10, monkeypatch)
    assert len(train(clicks, tmp_path / "run", *settings)) == 10
    stop_at(None, monkeypatch)
    for mine, theirs in zip(train(clicks, tmp_path / "run", *settings), undisturbed, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_bf16_changes_losses_little_and_profiling_writes_a_trace(clicks: Path, tmp_path: Path) -> None:
    exact = train(clicks, tmp_path / "fp32")
    rounded = train(clicks, tmp_path / "bf16", "train.precision=bf16", "train.profile=2")
    differences = [
        abs(mine["loss"] - theirs["loss"]) / theirs["loss"] for mine, theirs in zip(rounded, exact, strict=True)
    ]
    assert 0 < max(differences) < 0.02
    assert math.isfinite(rounded[-1]["loss_distil"])
    trace = json.loads((tmp_path / "bf16" / "profile" / "worker-0.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"## forward ##", "## backward ##", "aten::addmm"} <= names
    assert not (tmp_path / "fp32" / "profile").exists()
