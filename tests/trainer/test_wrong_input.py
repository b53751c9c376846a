"""Wrong input is reported in one line with exit status 2; a bug keeps its traceback, with exit status 1."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def broken(clicks: Path, tmp_path: Path) -> Path:
    """A copy of the data set to break."""
    folder = tmp_path / "broken"
    shutil.copytree(clicks, folder)
    return folder


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the training rows."""
    (file,) = (folder / "train").glob("*.parquet")
    pq.write_table(change(pq.read_table(file)), file)


def set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def zero_labels(folder: Path) -> None:
    from asymdiffrec.datasets.files.documents import write_yaml
    from asymdiffrec.datasets.statistics.compute import compute_statistics
    from asymdiffrec.trainer.job import read_job

    rewrite(folder, lambda table: set_column(table, "label", pc.multiply(table["label"], 0)))
    statistics, _ = compute_statistics(folder, read_job(folder / "job.yaml"))
    write_yaml(folder / "statistics.yaml", statistics)


def truncate(folder: Path) -> None:
    (file,) = (folder / "train").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("breakage", "settings", "message"),
    [
        (None, ["train.batchsize=4"], "train.batchsize: unknown key; did you mean batch_size?"),
        (None, ["fields.item_id.num_embeddings=0"], "fields.item_id.num_embeddings: found 0"),
        (None, ["train.batch_size=100"], "must be a multiple of data.lanes (32)"),
        (None, ["cluster.workers=3"], "data.lanes is 32; it must be a multiple of the number of workers (3)"),
        (None, ["data.time=clock"], "lacks the column clock (data.time)"),
        (None, ["train.batch_size=8192"], "fewer than one batch of 8192"),
        (None, ["tables.optimizer={name: adam}"], "adam has no fused kernel on cpu"),
        (None, ["tables.optimizer=sgd"], "tables.optimizer: found 'sgd'"),
        (None, ["diffusion.forward.time=beta"], "diffusion.forward.time: found 'beta'"),
        (None, ["tables.per_table.none.sharding=row_wise"], "no table is named none"),
        (None, ["model.extractor={name: 'nowhere:Extractor'}"], "cannot import nowhere"),
        (lambda folder: shutil.rmtree(folder / "valid"), [], "valid: no such file or folder"),
        (lambda folder: (folder / "statistics.yaml").unlink(), [], "statistics.yaml: no such file"),
        (lambda folder: rewrite(folder, lambda table: table.drop_columns(["price"])), [], "lacks the column price"),
        (
            lambda folder: rewrite(folder, lambda table: set_column(table, "tags", table["price"])),
            [],
            "column tags is double; field tags of type id_list needs a list of integers or strings",
        ),
        (
            lambda folder: rewrite(folder, lambda table: set_column(table, "label", pc.add(table["label"], 1))),
            [],
            "label 2; allowed is 0 or 1",
        ),
        (zero_labels, [], "every label is 0"),
        (truncate, [], "not a readable Parquet file"),
        (lambda folder: rewrite(folder, lambda table: table.slice(0, 0)), [], "hold no rows"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(
    broken: Path,
    breakage: Callable[[Path], None] | None,
    settings: list[str],
    message: str,
    command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    if breakage:
        breakage(broken)
    overrides = [part for setting in settings for part in ("--set", setting)]
    outcome = command("train", broken / "job.yaml", "--run", tmp_path / "run", *overrides)
    assert outcome.status == 2
    *before, error = outcome.err.splitlines()
    assert before in ([], ["training begins, 1 worker"])
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


FAULTY = """
import torch
from asymdiffrec.diffusion.extractors.base import Extractor

class Faulty(Extractor):
    def __init__(self, widths, mask_width, where):
        super().__init__()
        self.where, self.latent_dim = where, 4
        self.layer = torch.nn.Linear(sum(widths) + mask_width, 4)
        if where == "constructor":
            raise ValueError("a bug in the constructor")

    def forward(self, x, s):
        if self.where == "forward" or (self.where == "evaluation" and not self.training):
            raise ValueError(f"a bug in {self.where}")
        return self.layer(torch.cat([x, s], 1))
"""


def faulty(folder: Path, where: str) -> list[str]:
    """Write a module with an extractor that raises ValueError somewhere; returns the overrides that use it."""
    (folder / "faulty.py").write_text(FAULTY)
    extractor = f"model.extractor={{name: 'faulty:Faulty', options: {{where: {where}}}}}"
    return ["--set", extractor, "--set", "train.validation.every=2"]


@pytest.mark.parametrize("where", ["constructor", "forward", "evaluation"])
def test_an_error_of_a_users_class_is_not_wrong_input(
    where: str,
    clicks: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = faulty(tmp_path, where)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"a bug in (the )?{where}"):
        command("train", clicks / "job.yaml", "--run", tmp_path / "run", *small, *overrides)
    if where != "evaluation":
        with pytest.raises(ValueError, match=f"a bug in (the )?{where}"):
            command("plan", clicks / "job.yaml", "--gpus-per-node", 1, *overrides)


def test_an_error_of_a_users_class_keeps_its_traceback(
    clicks: Path, tmp_path: Path, script: Path, small: list[str]
) -> None:
    arguments = [script, "train", clicks / "job.yaml", "--run", tmp_path / "run", *small, *faulty(tmp_path, "forward")]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "faulty.py" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("ValueError: a bug in forward")


def test_diverging_training_is_one_line_and_exit_status_1(
    clicks: Path, tmp_path: Path, command: Callable[..., Any], small: list[str]
) -> None:
    outcome = command(
        "train", clicks / "job.yaml", "--run", tmp_path / "run", *small, "--set", "train.learning_rate=1e30"
    )
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith("error: loss is ")
    assert outcome.err.count("\n") == 2  # the other one says that training begins


def test_the_installed_script_reports_wrong_input(clicks: Path, tmp_path: Path, script: Path) -> None:
    arguments = [script, "train", clicks / "job.yaml", "--set", "train.epochs=none", "--run", tmp_path / "run"]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {clicks}/job.yaml: train.epochs: found 'none'; input should be a valid integer, "
        "unable to parse string as an integer\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "not a run directory"),
        (["train", "{clicks}/job.yaml", "--run", "/proc/nowhere"], "cannot write in this directory"),
        (["predict", "{trained}", "{clicks}/test", "/proc/nowhere.parquet"], "cannot write this file"),
        (["predict", "nowhere", "data", "out"], "not a run directory"),
        (["prepare", "movielens-100k", "out", "--input", "nowhere"], "nowhere"),
    ],
)
def test_other_commands_report_wrong_input_in_one_line(
    arguments: list[str],
    message: str,
    command: Callable[..., Any],
    clicks: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(*(argument.format(clicks=clicks, trained=trained) for argument in arguments))
    assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome.err
    assert message in outcome.err
