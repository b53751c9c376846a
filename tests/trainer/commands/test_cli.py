"""The command line: registered commands, fast help, and exit statuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from asymdiffrec.base import InputError
from asymdiffrec.cluster.errors import WorkerError
from asymdiffrec.trainer.commands import cli
from asymdiffrec.trainer.errors import CheckpointError, TrainingError

SLOW_IMPORTS = ("torch", "ray", "numpy", "pyarrow", "matplotlib")


def test_help_lists_every_command(command: Callable[..., Any]) -> None:
    outcome = command("--help")
    assert outcome.status == 0
    commands = ("prepare", "plan", "train", "submit", "job", "top", "samples")
    commands += ("evaluate", "compare", "tune", "export", "predict", "serve", "doctor")
    assert all(f" {name} " in outcome.out for name in commands)


def test_help_imports_nothing_slow() -> None:
    code = f"import sys, asymdiffrec.trainer.commands.cli; print([m for m in {SLOW_IMPORTS} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("job.yaml: name: is required"), 2, "error: job.yaml: name: is required"),
        (TrainingError("loss is NaN [at step 7]"), 1, "error: loss is NaN [at step 7]"),
        (CheckpointError("step-3 is damaged"), 1, "error: step-3 is damaged"),
        (WorkerError("worker 1 died"), 1, "error: worker 1 died"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException, status: int, line: str, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_error() -> None:
        raise error

    monkeypatch.setattr(cli, "app", raise_error)
    outcome = command("doctor")
    assert (outcome.status, outcome.err) == (status, f"{line}\n")


def test_an_error_in_our_code_keeps_its_traceback(command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "app", raise_error)
    with pytest.raises(ValueError, match="a bug"):
        command("doctor")
