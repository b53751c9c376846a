"""Starting from another run: which weights are taken, how, and what the report says."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from asymdiffrec.trainer.checkpoints.init_from import source_rows
from tests.trainer.runs import torchrun

STILL = ("train.learning_rate=1e-30", "tables.optimizer={name: sgd, learning_rate: 1e-30}", "train.steps=1")
MANAGED = ("fields.category={type: id, num_embeddings: 1280}", "tables.per_table.category.collision=managed")


@given(ratio=st.integers(1, 1000), old_rows=st.integers(1, 2**31), id_hash=st.integers(0, 2**64 - 1))
@settings(derandomize=True)
def test_an_id_of_a_larger_table_starts_with_its_old_row(ratio: int, old_rows: int, id_hash: int) -> None:
    new_rows = ratio * old_rows
    row = torch.tensor([id_hash * new_rows >> 64])
    assert source_rows(row, old_rows, new_rows).item() == id_hash * old_rows >> 64


@given(old_rows=st.integers(1, 2**31), new_rows=st.integers(1, 2**31))
@settings(derandomize=True)
def test_every_new_row_has_an_old_row_to_start_from(old_rows: int, new_rows: int) -> None:
    ends = source_rows(torch.tensor([0, new_rows - 1]), old_rows, new_rows)
    assert ((ends >= 0) & (ends < old_rows)).all()


def override_options(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture(scope="module")
def jobs(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two jobs, first.yaml and second.yaml, with different fields."""
    folder = tmp_path_factory.mktemp("jobs")
    first = yaml.safe_load((clicks / "job.yaml").read_text()) | {"name": "first"}
    first["data"]["path"] = str(clicks)
    second = json.loads(json.dumps(first)) | {"name": "second"}
    fields = second["fields"]
    fields["city"]["num_embeddings"] = 15000
    fields["tags"]["num_embeddings"] += 10
    fields["hour"]["embedding_dim"] = 8
    del fields["age"]
    for job in (first, second):
        (folder / f"{job['name']}.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    return folder


def read_checkpoint(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's newest checkpoint."""
    folder = max((run / "checkpoints").iterdir(), key=lambda folder: int(folder.name.removeprefix("step-")))
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {key: torch.empty(tensor.size, dtype=tensor.properties.dtype) for key, tensor in metadata.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    return tensors


@pytest.fixture
def first(jobs: Path, command: Callable[..., Any]) -> Path:
    """A run of the first job, trained once."""
    run = jobs / "first"
    if run.exists():
        return run
    outcome = command("train", jobs / "first.yaml", "--run", run, *override_options("train.steps=8", *MANAGED))
    assert outcome.status == 0, outcome.err
    return run


def test_a_run_on_two_workers_starts_from_a_run_on_one(jobs: Path, first: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    sharding = ("tables.per_table.city.sharding=[row_wise]", "tables.per_table.brand.sharding=[column_wise]")
    arguments = ("train", jobs / "second.yaml", "--run", second, "--init-from", first)
    launched = torchrun(2, *arguments, *override_options(*MANAGED, *STILL, *sharding))
    outcome = subprocess.run(launched, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    report = " ".join(outcome.stderr.replace("│", " ").split())
    for line in (
        "taken table city 15,000 rows, 10,000 in the other run: each starts as a copy of the old row of its ids",
        "taken table tags rows added: 10",
        "taken table user_id, item_id, gender, category, brand, weekday, device",
        "taken numeric income, price, position",
        "new table hour embedding_dim: 8, 16 in the other run",
        "left out numeric age this job has no such name",
    ):
        assert all(word in report for word in line.split()), (line, report)

    before, after = read_checkpoint(first), read_checkpoint(second)
    for table in ("user_id", "item_id", "gender", "category", "brand", "weekday", "device"):
        assert torch.equal(after[f"tables.{table}.weight"], before[f"tables.{table}.weight"]), table
    assert torch.equal(after["dense.diffusion.head.0.weight"], before["dense.diffusion.head.0.weight"])
    assert torch.equal(after["tables.category.ids"], before["tables.category.ids"])
    tags = before["tables.tags.weight"]
    assert torch.equal(after["tables.tags.weight"][: len(tags)], tags)
    copied = before["tables.city.weight"][source_rows(torch.arange(15000), 10000, 15000)]
    assert torch.equal(after["tables.city.weight"], copied)
    assert after["tables.hour.weight"].shape[1] == 8
    numbers = "dense.tables.concat.numeric.direction"
    assert torch.equal(after[numbers], before[numbers][16:])  # without the values of age, the first field


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--init-from", "nowhere"), "not a run directory"),
        (("--resume", "--init-from", "nowhere"), "--init-from starts a new run and --resume continues one"),
        (("--set", "fields.city.num_embeddings=20"), "fields.city.num_embeddings is 20, but"),
        (("--set", "fields.town={type: number}"), 'fields.town is {"column": null'),
    ],
)
def test_wrong_use_is_an_error_before_anything_is_allocated(
    jobs: Path, first: Path, command: Callable[..., Any], arguments: tuple[str, ...], message: str
) -> None:
    again = () if "--init-from" in arguments else ("--resume", "--run", first)
    outcome = command("train", jobs / "first.yaml", *again, *arguments)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome.err
    assert message in outcome.err
