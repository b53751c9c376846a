"""The commands, as their user runs them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

SMALL = ("--set", "train.batch_size=256", "--set", "train.epochs=2", "--set", "train.log_every=5")
SCRIPT = Path(sys.executable).with_name("asymdiffrec")


@pytest.fixture(scope="module")
def trained(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "trained"
    subprocess.run([SCRIPT, "train", clicks / "job.yaml", "--run", run, *SMALL], check=True, capture_output=True)
    return run


def test_run_directory_holds_what_the_design_says(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [*range(5, 36, 5), 36]
    expected = {"epoch", "samples", "samples_per_second", "loss", "loss_main", "loss_recon", "loss_aux", "loss_distil"}
    assert all(expected <= record.keys() for record in steps)
    assert steps[-1]["samples"] == 36 * 256
    assert steps[-1]["loss_main"] < steps[0]["loss_main"]
    metrics = {"auc", "uauc", "log_loss", "normalized_entropy", "calibration"}
    valid = [record for record in records if "valid/auc" in record]
    assert [record["step"] for record in valid] == [18, 36]
    assert all({f"valid/{metric}" for metric in metrics} <= record.keys() for record in valid)
    (test,) = [record for record in records if "test/auc" in record]
    assert {f"test/{metric}" for metric in metrics} <= test.keys()
    best = max(valid, key=lambda record: record["valid/auc"])
    assert test["step"] == best["step"]

    assert list((trained / "events").iterdir())
    plan = json.loads((trained / "plan.json").read_text())
    assert {"name", "rows", "dim", "sharding", "kernel", "ranks"} <= plan["tables"][0].keys()
    job = yaml.safe_load((trained / "job.yaml").read_text())
    assert job["train"]["batch_size"] == 256
    assert f"step-{best['step']}" in {folder.name for folder in (trained / "checkpoints").iterdir()}


def test_evaluate_as_json(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--missing", "0,0.5", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["split"] == "test"
    assert [result["missing"] for result in document["results"]] == [0, 0.5]
    assert all(result["rows"] == 600 for result in document["results"])
    assert document["results"][0]["auc"] > document["results"][1]["auc"]
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    assert document["results"][0]["auc"] == pytest.approx(logged["test/auc"], abs=1e-6)


def test_evaluate_shows_a_table(trained: Path, command: Callable[..., Any]) -> None:
    outcome = command("evaluate", trained, "--missing", "0.3", "--split", "valid")
    assert outcome.status == 0
    assert "valid split, 600 rows" in outcome.out
    assert "30%" in outcome.out


def test_predict_scores_what_evaluate_judges(
    trained: Path, clicks: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    (file,) = (clicks / "test").glob("*.parquet")
    unlabelled = tmp_path / "in.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["label", "user"]), unlabelled, row_group_size=170)
    out = tmp_path / "out" / "scores.parquet"
    assert command("predict", trained, unlabelled, out).status == 0
    scored = pq.read_table(out)
    assert scored.drop_columns(["score"]).equals(pq.read_table(unlabelled))
    label = torch.tensor(pq.read_table(file)["label"].to_pylist())
    score = torch.tensor(scored["score"].to_pylist())
    assert ((score > 0) & (score < 1)).all()
    ahead = score[label == 1][:, None] - score[label == 0]
    auc = ((ahead > 0).double() + (ahead == 0) / 2).mean().item()
    document = command("evaluate", trained, "--json").document
    assert auc == pytest.approx(document["results"][0]["auc"], abs=1e-6)

    again = command("predict", trained, unlabelled, out)
    assert (again.status, "exists" in again.err) == (2, True)


def test_interrupted_run_goes_on_to_the_same_end(clicks: Path, trained: Path, tmp_path: Path) -> None:
    """Ctrl-C leaves a checkpoint, and the resumed run logs the losses that an undisturbed one logs."""
    run = tmp_path / "run"
    arguments = [SCRIPT, "train", clicks / "job.yaml", "--run", run, *SMALL]
    metrics = run / "metrics.jsonl"
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate()
    assert process.returncode == 130, message
    assert "--resume" in message
    result = json.loads((run / "result.json").read_text())
    assert result["state"] == "interrupted"
    assert result["step"] < 36

    subprocess.run([*arguments, "--resume"], check=True, capture_output=True)

    def losses(folder: Path) -> list[tuple[int, float]]:
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [(record["step"], record["loss"]) for record in records if "loss" in record]

    assert [step for step, _ in losses(run)] == [step for step, _ in losses(trained)]
    assert [loss for _, loss in losses(run)] == pytest.approx([loss for _, loss in losses(trained)], rel=1e-4)


def test_training_twice_needs_another_folder(trained: Path, clicks: Path, command: Callable[..., Any]) -> None:
    outcome = command("train", clicks / "job.yaml", "--run", trained)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "--resume" in outcome.err


@pytest.fixture
def broken(clicks: Path, tmp_path: Path) -> Path:
    """A copy of the data to break."""
    folder = tmp_path / "broken"
    shutil.copytree(clicks, folder)
    return folder


def rewritten(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    (file,) = (folder / "train").glob("*.parquet")
    pq.write_table(change(pq.read_table(file)), file)


def set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def zero_labels(folder: Path) -> None:
    from asymdiffrec.datasets.profile import learn
    from asymdiffrec.trainer.job import read_job, write_yaml

    rewritten(folder, lambda table: set_column(table, "label", pc.multiply(table["label"], 0)))
    learned, _ = learn(folder, read_job(folder / "job.yaml"))
    write_yaml(folder / "schema.yaml", learned)


def truncate(folder: Path) -> None:
    (file,) = (folder / "train").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("breakage", "settings", "message"),
    [
        (None, ["train.batchsize=4"], "train.batchsize: unknown key; did you mean batch_size?"),
        (None, ["fields.item_id.rows=0"], "fields.item_id.rows: found 0"),
        (None, ["train.batch_size=100"], "must be a multiple of data.lanes (64)"),
        (None, ["cluster.workers=3"], "it must divide data.lanes (64)"),
        (None, ["train.batch_size=8192"], "fewer than one batch of 8192"),
        (None, ["tables.optimizer={name: adam}"], "adam has no fused kernel on cpu"),
        (None, ["tables.sharding={none: row_wise}"], "no table is named none"),
        (None, ["model.extractor={name: 'nowhere:Extractor'}"], "cannot import nowhere"),
        (lambda folder: shutil.rmtree(folder / "valid"), [], "valid: no such file or folder"),
        (lambda folder: (folder / "schema.yaml").unlink(), [], "schema.yaml: no such file"),
        (lambda folder: rewritten(folder, lambda table: table.drop_columns(["price"])), [], "lacks the column price"),
        (
            lambda folder: rewritten(folder, lambda table: set_column(table, "tags", table["price"])),
            [],
            "column tags is double; field tags of type id_list needs a list of integers or strings",
        ),
        (
            lambda folder: rewritten(folder, lambda table: set_column(table, "label", pc.add(table["label"], 1))),
            [],
            "label 2; allowed is 0 or 1",
        ),
        (zero_labels, [], "every label is 0"),
        (truncate, [], "not a readable Parquet file"),
        (lambda folder: rewritten(folder, lambda table: table.slice(0, 0)), [], "hold no rows"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
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
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def test_wrong_input_to_the_installed_script(clicks: Path, tmp_path: Path) -> None:
    arguments = [SCRIPT, "train", clicks / "job.yaml", "--set", "train.epochs=none", "--run", tmp_path / "run"]
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
        (["predict", "nowhere", "data", "out"], "not a run directory"),
        (["prepare", "movielens-100k", "out", "--input", "nowhere"], "nowhere"),
    ],
)
def test_other_commands_answer_alike(
    arguments: list[str], message: str, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command(*arguments)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome.err
    assert message in outcome.err


def test_prepare_tells_the_ceiling_and_refuses_an_existing_folder(tmp_path: Path, command: Callable[..., Any]) -> None:
    outcome = command("prepare", "synthetic", tmp_path / "out", "--rows", 2000)
    assert outcome.status == 0
    ceiling = json.loads((tmp_path / "out" / "profile.json").read_text())["ceiling"]["auc_observed"]
    assert f"{ceiling:.4f}" in outcome.out
    again = command("prepare", "synthetic", tmp_path / "out", "--rows", 2000)
    assert (again.status, again.err.count("\n")) == (2, 1)
    assert "exists" in again.err


def test_doctor_finds_this_environment_sound(command: Callable[..., Any]) -> None:
    outcome = command("doctor", "--json")
    assert outcome.status == 0, outcome.out
    assert outcome.document["sound"]
    assert len(outcome.document["checks"]) == 6
