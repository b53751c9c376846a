"""Tests of the program that compares the results of two commits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.same_computation import Dataset, Quantities, Tree, broad, compare, differences, main, record

ROOT = Path(__file__).parents[2]


def document(quantities: Quantities) -> dict[str, object]:
    return {"commit": "0" * 40, "steps": 3, "quantities": quantities}


def test_differences_are_relative_to_the_larger_value() -> None:
    assert differences([1.0, 2.0, 0.0], [1.0, 1.0, 0.0]) == [0.0, 0.5, 0.0]
    assert differences([1.0, 2.0], [1.0]) == [0.0, math.inf]
    assert differences(["a", "b", None], ["a", "c", None]) == [0.0, math.inf, 0.0]
    assert differences([math.nan], [1.0]) == [math.inf]


def test_compare_accepts_differences_within_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = document({"loss": [1.0, 0.5]}), document({"loss": [1.0, 0.5 * (1 + 5e-7)]})
    assert compare(first, second)
    assert "1 quantities, 0 with a difference above 1e-06" in capsys.readouterr().out


def test_compare_names_the_first_value_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = document({"loss": [1.0, 0.5, 0.25]}), document({"loss": [1.0, 0.500001, 0.3]})
    assert not compare(first, second)
    assert "no, first at value 2" in capsys.readouterr().out


def test_compare_rejects_a_quantity_that_one_record_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert not compare(document({"loss": [1.0], "auc": [0.8]}), document({"loss": [1.0]}))
    assert "not in B" in capsys.readouterr().out


def test_exit_status_says_whether_two_records_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, loss in zip(files, (1.0, 2.0), strict=True):
        file.write_text(json.dumps(document({"loss": [loss]})))
    for pair, status in ((files, 1), ([files[0], files[0]], 0)):
        monkeypatch.setattr("sys.argv", ["same_computation", "compare", *map(str, pair)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert exit_info.value.code == status


def test_record_has_losses_metrics_and_scores_of_this_tree() -> None:
    """Run the experiment with the most settings: this test fails if a setting was renamed."""
    small = Dataset("synthetic", ("--rows", "2000"), (broad("city"),))
    quantities = record(Tree(ROOT), [small], steps=3)
    lengths = {name: len(values) for name, values in quantities.items()}
    assert lengths["synthetic/columns/train"] == 18
    assert lengths["synthetic/broad/step/loss"] == 3
    assert lengths["synthetic/broad/step/row_checksum"] == 3
    assert lengths["synthetic/broad/evaluate/auc"] >= 3
    assert lengths["synthetic/broad/predict run/score"] == lengths["synthetic/broad/predict export/score"] == 200
    assert compare(document(quantities), document(quantities))
