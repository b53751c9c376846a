from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asymdiffrec.trainer.commands import cli


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def script() -> Path:
    """The installed command."""
    return Path(sys.executable).with_name("asymdiffrec")


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Settings of a short run: two epochs of 18 steps."""
    settings = ["train.batch_size=256", "train.epochs=2", "train.log_every=5"]
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture(scope="session")
def trained(clicks: Path, script: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run; tests change nothing in it."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    subprocess.run([script, "train", clicks / "job.yaml", "--run", run, *small], check=True, capture_output=True)
    return run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run the command in this process, through the function that the installed script calls."""

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
