"""Write a small data set and the run of a training on the CPU. Trainings on the GPU are compared with this run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

LOG_FILES = ("metrics.jsonl", "result.json", "plan.json")
"""Files of the reference run that are packed. Checkpoints are large and not needed"""


def overrides(steps: int) -> list[str]:
    """Return the overrides for the trainings on the CPU and the GPU. Every step is logged."""
    return [
        "train.batch_size=512",
        "train.epochs=100",
        f"train.steps={steps}",
        "train.log_every=1",
        f"train.validation.every={steps // 2}",
        "train.validation.patience=100",
        f"train.checkpoints.steps={steps // 4}",
    ]


def set_options(values: list[str]) -> list[str]:
    """Return overrides PATH=VALUE as `--set` options."""
    return [part for value in values for part in ("--set", value)]


def write_reference(folder: Path, rows: int, steps: int) -> None:
    """Write data/ (synthetic), overrides.json and reference/ (a run on the CPU) to `folder`.

    An existing data/ is kept. The training runs each time, because the code may have changed.
    """
    command = [sys.executable, "-m", "asymdiffrec"]
    data, run = folder / "data", folder / "reference"
    if not data.exists():
        subprocess.run([*command, "prepare", "synthetic", str(data), "--rows", str(rows)], check=True)
    values = overrides(steps)
    (folder / "overrides.json").write_text(json.dumps(values))
    shutil.rmtree(run, ignore_errors=True)
    training = [*command, "train", str(data / "job.yaml"), "--run", str(run), "--set", "cluster.gpu=false"]
    with (folder / "reference.log").open("w") as log:
        subprocess.run([*training, *set_options(values)], check=True, stdout=log, stderr=log)
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in LOG_FILES:
            path.unlink()
