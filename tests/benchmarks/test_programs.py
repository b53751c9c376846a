"""Tests that every benchmark runs and prints a JSON document with the expected keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import PROGRAMS

ROOT = Path(__file__).parents[2]
KEYS = {"name", "value", "unit", "peer", "peer_value", "ratio", "goal", "holds"}


def run_quick(program: str, *options: str | Path) -> str:
    command = [sys.executable, "-m", f"benchmarks.{program}", "--quick", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_quick_run_prints_the_document(program: str) -> None:
    document = json.loads(run_quick(program, "--json"))
    assert document.keys() == {"machine", "versions", "results"}
    assert {"asymdiffrec", "torch", "torchrec", "pyarrow"} <= document["versions"].keys()
    assert document["results"]
    for result in document["results"]:
        assert result.keys() == KEYS
        assert result["value"] > 0
        assert result["ratio"] == pytest.approx(result["value"] / result["peer_value"])
        assert result["holds"] is None


def test_quality_on_movielens_prints_a_table_with_its_goals(data_folder: Path) -> None:
    printed = run_quick("quality", "--data", data_folder / "movielens-100k")
    assert all(heading in printed for heading in ("name", "value", "peer", "ratio", "goal", "holds"))
    assert "AUC of asymdiff, 70% missing" in printed
    assert printed.count("at least 0.778") == 2


def test_all_programs_together_write_documents_one_table_and_a_picture(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "plans", "--quick", "--into", str(tmp_path / "results")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["plans.json"]
    assert "lower bound" in result.stdout

    command = [sys.executable, "-m", "benchmarks", "--no-run", "--into", str(tmp_path / "all")]
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "all", ignore=shutil.ignore_patterns("*.png"))
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "faults" in result.stdout
    assert (tmp_path / "all" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_name_is_refused_with_the_names_of_all_programs() -> None:
    result = subprocess.run([sys.executable, "-m", "benchmarks", "speed"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no benchmark is named speed; the benchmarks are breakdown, checkpoints" in result.stderr
