"""An exception in a user-defined method ends `train` with one traceback, in one process and under Ray."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

METHOD = """
from asymdiffrec.diffusion.methods import AsymmetricDiffusion


class Broken(AsymmetricDiffusion):
    def parts(self, clean, missing, label, weight, sample_index):
        raise KeyError("no such column")
"""


@pytest.mark.parametrize("arguments", [(), ("--workers", "2", "--set", "cluster.max_failures=0")], ids=["one", "Ray"])
def test_traceback_is_printed_once(arguments: tuple[str, ...], clicks: Path, script: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_method.py").write_text(METHOD)
    outcome = subprocess.run(
        [script, "train", clicks / "job.yaml", "--set", "diffusion.method=broken_method:Broken", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 1, outcome.stderr
    assert outcome.stderr.count("Traceback (most recent call last):") == 1, outcome.stderr
    assert outcome.stderr.count('raise KeyError("no such column")') == 1
    assert "[rank" not in outcome.stderr
