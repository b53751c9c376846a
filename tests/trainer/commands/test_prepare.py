"""`asymdiffrec prepare` on the command line: raw files become a job that trains."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml

from asymdiffrec.datasets.prepare.movielens.dataset import make_samples
from asymdiffrec.datasets.prepare.movielens.files import read_ratings

Command = Callable[..., Any]
RECIPES = Path(__file__).parents[3] / "benchmarks" / "recipes"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    number = np.arange(500)
    table = pa.table(
        {
            "user_id": number % 31,
            "word": [f"word {k % 9}" for k in number.tolist()],
            "price": number / 8,
            "when": number,
            "rating": number % 5 + 1,
        }
    )
    pacsv.write_csv(table, tmp_path / "log.csv")
    return tmp_path / "log.csv"


def read_job(out: Path) -> dict[str, Any]:
    """Return the job file of a data set."""
    return yaml.safe_load((out / "job.yaml").read_text())  # type: ignore[no-any-return]


def test_help_lists_the_sources_and_options(command: Command) -> None:
    outcome = command("prepare", "--help")
    assert outcome.status == 0
    assert all(source in outcome.out for source in ("synthetic", "movielens-100k", "movielens-1m", "criteo", "table"))
    help_text = command("prepare", "table", "--help").out
    options = ("input", "recipe", "label", "user", "id", "number", "list", "missing", "split", "bad-rows", "dry-run")
    assert all(f"--{option}" in help_text for option in options)


def test_synthetic_prints_the_best_auc_and_refuses_an_existing_folder(tmp_path: Path, command: Command) -> None:
    outcome = command("prepare", "synthetic", tmp_path / "out", "--rows", 2000)
    assert outcome.status == 0
    best_auc = json.loads((tmp_path / "out" / "profile.json").read_text())["optimal_auc"]["observed"]
    assert f"{best_auc:.4f}" in outcome.out
    again = command("prepare", "synthetic", tmp_path / "out", "--rows", 2000)
    assert (again.status, again.err.count("\n")) == (2, 1)
    assert "exists" in again.err


def test_a_table_with_options_only(command: Command, log: Path, tmp_path: Path) -> None:
    options = ["--label", "rating", "--at-least", "4", "--number", "price", "--id", "word,when", "--min-count", "2"]
    outcome = command("prepare", "table", tmp_path / "out", "--input", log, *options, "--valid", "0.2", "--seed", 3)
    assert outcome.status == 0
    assert "integers in a column named as an id" in " ".join(outcome.err.split())
    assert "declared" in outcome.err
    assert f"Train with: asymdiffrec train {tmp_path}/out/job.yaml" in outcome.out
    fields = read_job(tmp_path / "out")["fields"]
    assert {name: field["type"] for name, field in fields.items()} == {
        "user_id": "id",
        "word": "id",
        "price": "number",
        "when": "id",
    }
    assert fields["word"]["min_count"] == 2
    assert pq.read_metadata(next((tmp_path / "out" / "valid").iterdir())).num_rows > 70


def test_options_replace_values_of_the_recipe(command: Command, log: Path, tmp_path: Path) -> None:
    recipe = {
        "name": "mine",
        "input": {"files": "nowhere.csv", "delimiter": ","},
        "label": {"column": "rating", "at_least": 2},
        "fields": {"word": {"num_embeddings": 55}, "price": {"type": "number", "transform": "log1p"}},
        "output": {"rows_per_file": 100},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--recipe", tmp_path / "recipe.yaml", "--input", log, "--at-least", "5", "--number", "when"]
    outcome = command("prepare", "table", tmp_path / "out", *options, "--set", "output.rows_per_group=50", "--json")
    assert outcome.status == 0, outcome.err
    job, profile = read_job(tmp_path / "out"), outcome.document
    assert job["name"] == "mine"
    assert list(job["fields"]) == ["word", "price", "when"]
    assert job["fields"]["word"] == {"type": "id", "num_embeddings": 55, "values": "string"}
    assert profile["label_rate"]["train"] == pytest.approx(0.2, abs=0.05)
    reasons = {column["column"]: column["reason"] for column in profile["columns"]}
    assert reasons["user_id"] == "is not declared as a field"
    footer = pq.read_metadata(min((tmp_path / "out" / "train").iterdir()))
    assert (footer.num_rows, footer.row_group(0).num_rows) == (100, 50)


def test_a_dry_run_writes_nothing(command: Command, log: Path, tmp_path: Path) -> None:
    outcome = command("prepare", "table", tmp_path / "out", "--input", log, "--label", "rating", "--dry-run", "--json")
    assert outcome.status == 0
    document = outcome.document
    assert document["fields"]["user_id"]["type"] == "id"
    assert {column["column"]: column["type"] for column in document["columns"]}["price"] == "number"
    assert not (tmp_path / "out").exists()


def test_skipped_rows_are_reported(command: Command, log: Path, tmp_path: Path) -> None:
    log.write_text(log.read_text() + "1,2\n3,x,y,4,5\n")
    options = ["--input", log, "--label", "rating", "--at-least", "4", "--number", "price"]
    outcome = command("prepare", "table", tmp_path / "out", *options)
    assert outcome.status == 2
    assert "log.csv, line 502: Expected Number of Columns: 5 Found: 2: 1,2" in outcome.err
    outcome = command("prepare", "table", tmp_path / "out", *options, "--bad-rows", "skip")
    assert outcome.status == 0
    assert "skipped 1 rows: the line is not a row of the table" in outcome.out
    assert "line 502" in outcome.out
    assert "skipped 1 rows: column price: not a number" in outcome.out
    assert "row 501 of the readable rows, column price: found 'y'" in outcome.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "stars"], "label: there is no column stars; the columns are user_id, word, price, when, rating"),
        ([], "--label: no column is named"),
        (["--label", "rating"], "log.csv, row 2, column rating: found '2'; allowed is 0 or 1"),
        (["--label", "rating", "--set", "outputs.rows=3"], "outputs: unknown key; did you mean output?"),
        (
            ["--label", "rating", "--valid", "1.5"],
            "split: the shares of valid and test must be above 0",
        ),
        (["--label", "rating", "--test", "no.csv"], "no.csv: no such file"),
        (
            ["--label", "rating", "--split", "time"],
            "--split time: no time column was found",
        ),
    ],
)
def test_wrong_input_is_one_line(command: Command, log: Path, tmp_path: Path, options: list[str], message: str) -> None:
    outcome = command("prepare", "table", tmp_path / "out", "--input", log, *options)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.strip().splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]


def test_criteo(command: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for row in range(600):
        numbers = ["" if rng.random() < 0.3 else str(rng.integers(-2, 500)) for _ in range(13)]
        ids = ["" if rng.random() < 0.1 else f"{rng.zipf(1.5) % 2**32:08x}" for _ in range(26)]
        lines.append("\t".join([str(row % 4 // 3), *numbers, *ids]) + "\n")
    file = tmp_path / "day_0.gz"
    file.write_bytes(gzip.compress("".join(lines).encode()))
    outcome = command("prepare", "criteo", tmp_path / "out", "--input", file, "--split", "order", "--json")
    assert outcome.status == 0, outcome.err
    fields = read_job(tmp_path / "out")["fields"]
    assert [name for name, field in fields.items() if field["type"] == "number"] == [f"I{k}" for k in range(1, 14)]
    assert all(fields[f"C{k}"]["values"] == "string" and fields[f"C{k}"]["min_count"] == 10 for k in range(1, 27))
    assert fields["I1"]["transform"] == "log_squared"
    assert outcome.document["rows"] == {"train": 480, "valid": 60, "test": 60}
    assert outcome.document["fields"]["I1"]["missing"] == pytest.approx(0.3, abs=0.06)
    test = pq.read_table(tmp_path / "out" / "test")
    assert sorted(test["C1"].to_pylist(), key=str) == sorted(
        (line.split("\t")[14] or None for line in lines[540:]), key=str
    )


def test_adult_trains_from_its_original_files(command: Command, data_folder: Path, tmp_path: Path) -> None:
    files = ["--input", data_folder / "adult" / "adult.data", "--test", data_folder / "adult" / "adult.test"]
    label = ["--label", "classification", "--positive", ">50K", "--positive", ">50K."]
    outcome = command("prepare", "table", tmp_path / "adult", *files, *label, "--json")
    assert outcome.document["rows"]["test"] == 16_281
    assert 0.05 < outcome.document["fields"]["workclass"]["missing"] < 0.06
    outcome = command("train", tmp_path / "adult" / "job.yaml", "--run", tmp_path / "run", "--set", "train.epochs=5")
    assert outcome.status == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["test/auc"] > 0.905


def test_movielens_by_a_query_equals_prepare_movielens(
    command: Command, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_folder / "movielens-100k")
    outcome = command("prepare", "table", tmp_path / "out", "--recipe", RECIPES / "movielens-100k.yaml", "--json")
    assert outcome.status == 0, outcome.err
    keys = ["user_id", "item_id"]
    parts = [pq.read_table(tmp_path / "out" / split) for split in ("train", "valid", "test")]
    train = {tuple(pair) for pair in zip(*(parts[0][key].to_pylist() for key in keys), strict=True)}
    ratings = read_ratings("100k", data_folder / "movielens-100k")
    in_train = np.array([pair in train for pair in zip(ratings.user.tolist(), ratings.item.tolist(), strict=True)])
    expected = make_samples(ratings, in_train).sort_by([(key, "ascending") for key in keys])
    samples = pa.concat_tables(parts).sort_by([(key, "ascending") for key in keys])
    assert len(samples) == len(expected) == 100_000
    for name in ("gender", "occupation", "zip_prefix", "release_year", "hour", "weekday", "label"):
        assert samples[name].to_pylist() == expected[name].to_pylist(), name
    np.testing.assert_allclose(np.log1p(samples["user_count"]), expected["user_count"])
    np.testing.assert_allclose(np.log1p(samples["item_count"]), expected["item_count"])
    for name in ("user_like_rate", "item_like_rate"):
        np.testing.assert_allclose(samples[name].to_numpy(), expected[name].to_numpy())
    lengths, expected_lengths = (pc.list_value_length(table["history"]).fill_null(0) for table in (samples, expected))
    assert lengths.to_pylist() == expected_lengths.to_pylist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--id", "city", "--number", "city"), "--number city: --id names this column too"),
        (("--id", "city", "--ignore", "city"), "--id city: --ignore names this column too"),
        (("--set", "train.epoch=3"), "train: epoch: unknown key; .*epochs"),
        (("--set", "train.epochs=0"), "train: epochs: found 0"),
    ],
)
def test_contradictory_options_are_an_error_before_any_work(
    command: Command, log: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    outcome = command("prepare", "table", tmp_path / "out", "--input", log, *options)
    assert outcome.status == 2
    assert re.search(message, outcome.err)


@pytest.mark.parametrize("source", ["table", "criteo", "movielens-100k", "movielens-1m"])
def test_all_sources_use_the_same_name_for_a_split_by_time(command: Command, tmp_path: Path, source: str) -> None:
    outcome = command("prepare", source, tmp_path / "out", "--split", "temporal")
    assert outcome.status == 2
    assert "'temporal' is not one of 'random', 'time'" in " ".join(outcome.err.replace("│", " ").split())


def test_movielens_split_by_time(command: Command, data_folder: Path, tmp_path: Path) -> None:
    options = ["--input", data_folder / "movielens-100k", "--split", "time"]
    assert command("prepare", "movielens-100k", tmp_path / "out", *options).status == 0
    times = [pq.read_table(tmp_path / "out" / split)["timestamp"].to_numpy() for split in ("train", "valid", "test")]
    assert times[0].max() < times[1].min() <= times[1].max() < times[2].min()
