"""An export gives the same scores as its run, and its card has the metrics before and after quantisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from asymdiffrec.serving.export import load_export
from asymdiffrec.trainer.inference.export import export_run

PRECISIONS = ["fp32", "fp16", "int8", "int4"]


@pytest.fixture(scope="module")
def exports(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exports of the short run by precision."""
    folder = tmp_path_factory.mktemp("exports")
    for precision in PRECISIONS:
        export_run(trained, folder / precision, precision, Console(quiet=True))
    return {precision: folder / precision for precision in PRECISIONS}


def predict(command: Callable[..., Any], model: Path, data: Path, out: Path) -> np.ndarray:
    """Return the scores that the command `predict` writes."""
    outcome = command("predict", model, data, out)
    assert outcome.status == 0, outcome.err
    return pq.read_table(out)["score"].to_numpy()


def test_fp32_export_scores_as_the_run_and_lower_precision_is_close(
    trained: Path, clicks: Path, exports: dict[str, Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    expected = predict(command, trained, clicks / "test", tmp_path / "run.parquet")
    by_precision = {
        precision: predict(command, folder, clicks / "test", tmp_path / f"{precision}.parquet")
        for precision, folder in exports.items()
    }
    np.testing.assert_allclose(by_precision["fp32"], expected, atol=1e-6)
    errors = [np.abs(by_precision[precision] - expected).max() for precision in PRECISIONS]
    assert errors[0] < errors[1] < errors[2] < errors[3] < 0.1
    sizes = [(exports[precision] / "tables.bin").stat().st_size for precision in PRECISIONS]
    assert sizes == sorted(sizes, reverse=True)


def test_card_has_the_metrics_before_and_after_quantisation(
    trained: Path, exports: dict[str, Path], command: Callable[..., Any]
) -> None:
    export = load_export(exports["int8"])
    assert export.card["precision"] == "int8"
    assert export.card["rows"]["test"] == 601
    evaluated = command("evaluate", trained, "--missing", "0,0.5", "--json").document["results"]
    quantised = command("evaluate", trained, "--missing", "0", "--tables", "int8", "--json").document["results"]
    metrics = export.card["metrics"]
    for result, index in zip(evaluated, (0, 3), strict=True):
        assert metrics["run"]["random_missing"][index]["auc"] == pytest.approx(result["auc"], abs=1e-9)
    assert metrics["export"]["random_missing"][0]["log_loss"] == pytest.approx(quantised[0]["log_loss"], abs=1e-6)
    assert {"user outage", "item_id outage"} <= {result["scenario"] for result in metrics["export"]["outages"]}
    versions = {load_export(folder).manifest.version for folder in exports.values()}
    assert len(versions) == len(PRECISIONS)


def test_user_defined_classes_are_imported_only_if_allowed(
    clicks: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    method = "diffusion.method=benchmarks.rivals.autoencoder:Autoencoder"
    run = ["train", clicks / "job.yaml", "--run", tmp_path / "run", "--set", method, "--set", "train.steps=3"]
    assert command(*run).status == 0
    assert command("export", tmp_path / "run", tmp_path / "out").status == 0
    outcome = command("predict", tmp_path / "out", clicks / "test", tmp_path / "scores.parquet")
    assert outcome.status == 2
    assert "Autoencoder; add --allow-user-classes to import it" in outcome.err
    expected = predict(command, tmp_path / "run", clicks / "test", tmp_path / "expected.parquet")
    exported = tmp_path / "exported.parquet"
    assert command("predict", tmp_path / "out", clicks / "test", exported, "--allow-user-classes").status == 0
    np.testing.assert_allclose(pq.read_table(exported)["score"].to_numpy(), expected, atol=1e-6)


def test_ids_of_managed_tables_are_exported(clicks: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    settings = (
        *("fields.user_id.hash=true", "fields.user_id.num_embeddings=128", "train.steps=20", "train.batch_size=256"),
        "tables.per_table={user_id: {collision: managed}}",
    )
    run = ["train", clicks / "job.yaml", "--run", tmp_path / "run"]
    assert command(*run, *(part for setting in settings for part in ("--set", setting))).status == 0
    assert command("export", tmp_path / "run", tmp_path / "out").status == 0
    assert "ids.safetensors" in load_export(tmp_path / "out").manifest.files
    expected = predict(command, tmp_path / "run", clicks / "test", tmp_path / "expected.parquet")
    exported = predict(command, tmp_path / "out", clicks / "test", tmp_path / "exported.parquet")
    np.testing.assert_allclose(exported, expected, atol=1e-6)
