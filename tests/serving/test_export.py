"""Exports score as their run does, and a damaged or foreign export is not loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from asymdiffrec.base import InputError
from asymdiffrec.datasets.batching.batch import to_batch
from asymdiffrec.datasets.decoding.rows import decode
from asymdiffrec.datasets.schema import FieldsConfig
from asymdiffrec.embeddings.config import TablesConfig
from asymdiffrec.embeddings.serving_tables import ServedTables, write_tables
from asymdiffrec.serving.export import load_export
from asymdiffrec.trainer.inference.export import export_run
from tests.serving.test_batch_prediction import SCHEMA, table

PRECISIONS = ["fp32", "fp16", "int8", "int4"]


@pytest.fixture(scope="module")
def exports(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exports of the short run by precision."""
    folder = tmp_path_factory.mktemp("exports")
    for precision in PRECISIONS:
        export_run(trained, folder / precision, precision, Console(quiet=True))
    return {precision: folder / precision for precision in PRECISIONS}


def scores(command: Callable[..., Any], model: Path, data: Path, out: Path) -> np.ndarray:
    outcome = command("predict", model, data, out)
    assert outcome.status == 0, outcome.err
    return pq.read_table(out)["score"].to_numpy()


def test_fp32_export_scores_as_the_run_and_lower_precision_is_close(
    trained: Path, clicks: Path, exports: dict[str, Path], command: Callable[..., Any], tmp_path: Path
) -> None:
    expected = scores(command, trained, clicks / "test", tmp_path / "run.parquet")
    by_precision = {
        precision: scores(command, folder, clicks / "test", tmp_path / f"{precision}.parquet")
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


def copy_export(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "export"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def change_json(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["config.json", "statistics.json", "card.json", "dense.safetensors", "tables.bin"])
def test_changed_or_absent_file_is_refused(exports: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = copy_export(exports["int8"], tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: differs from its checksum in manifest.json; it was damaged"):
        load_export(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: is missing, but manifest.json lists it; export the run again"):
        load_export(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest.update(format=1),
            r"export format 1, written by asymdiffrec \S+; this version reads format 3",
        ),
        (
            lambda manifest: manifest["files"].update({"../x": manifest["files"]["card.json"]}),
            "not a file of an export",
        ),
        (lambda manifest: manifest["files"].pop("tables.bin"), "does not list tables.bin"),
        (lambda manifest: manifest.update(files=3), "manifest.json: files: "),
    ],
)
def test_foreign_manifest_is_refused(
    exports: dict[str, Path], tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = copy_export(exports["fp32"], tmp_path)
    change_json(folder, "manifest.json", change)
    with pytest.raises(InputError, match=message):
        load_export(folder)


def test_folder_without_export_is_refused_and_existing_folder_is_kept(
    tmp_path: Path, trained: Path, command: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match="no such file; is the folder an export"):
        load_export(tmp_path)
    outcome = command("export", trained, tmp_path)
    assert outcome.status == 2
    assert "exists; choose another folder" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_user_defined_classes_are_imported_only_if_allowed(
    clicks: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    method = "diffusion.method=benchmarks.rivals.autoencoder:Autoencoder"
    run = ["train", clicks / "job.yaml", "--run", tmp_path / "run", "--set", method, "--set", "train.steps=3"]
    assert command(*run).status == 0
    assert command("export", tmp_path / "run", tmp_path / "out").status == 0
    outcome = command("predict", tmp_path / "out", clicks / "test", tmp_path / "scores.parquet")
    assert outcome.status == 2
    assert "Autoencoder; --allow-user-classes imports it" in outcome.err
    expected = scores(command, tmp_path / "run", clicks / "test", tmp_path / "expected.parquet")
    found = tmp_path / "found.parquet"
    assert command("predict", tmp_path / "out", clicks / "test", found, "--allow-user-classes").status == 0
    np.testing.assert_allclose(pq.read_table(found)["score"].to_numpy(), expected, atol=1e-6)


def test_ids_of_managed_tables_are_exported(clicks: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    settings = (
        *("fields.user_id.hash=true", "fields.user_id.num_embeddings=128", "train.steps=20", "train.batch_size=256"),
        "tables.per_table={user_id: {collision: managed}}",
    )
    run = ["train", clicks / "job.yaml", "--run", tmp_path / "run"]
    assert command(*run, *(part for setting in settings for part in ("--set", setting))).status == 0
    assert command("export", tmp_path / "run", tmp_path / "out").status == 0
    assert "ids.safetensors" in load_export(tmp_path / "out").manifest.files
    expected = scores(command, tmp_path / "run", clicks / "test", tmp_path / "expected.parquet")
    found = scores(command, tmp_path / "out", clicks / "test", tmp_path / "found.parquet")
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_look_ups_are_sums_of_embeddings(tmp_path: Path, precision: str) -> None:
    config = TablesConfig(embedding_dim=8)
    torch.manual_seed(0)
    weights = {name: torch.randn(9, 8) for name in ("tags", "slot")}
    write_tables(weights, SCHEMA, config, precision, tmp_path / "tables.bin")
    served = ServedTables(SCHEMA, config, precision, tmp_path / "tables.bin")
    rows = decode(table(40).select(SCHEMA.columns(labelled=False)), SCHEMA, "", labelled=False)
    batch = to_batch(rows, SCHEMA, 0)
    clean, missing = served(batch)
    assert torch.equal(missing, batch.missing)
    worst = {"fp32": 1e-6, "fp16": 1e-2, "int8": 0.05, "int4": 0.6}[precision]
    for index, name in enumerate(("tags", "slot")):
        ids = batch.ids[name]
        sums = torch.segment_reduce(weights[name][ids.values()], "sum", lengths=ids.lengths().long(), initial=0)
        if name == "tags":
            sums = sums / ids.lengths().clamp(min=1)[:, None]
        torch.testing.assert_close(clean[:, 8 * index : 8 * index + 8], sums, atol=worst, rtol=0)
    (tmp_path / "tables.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="has 5 bytes"):
        ServedTables(SCHEMA, config, precision, tmp_path / "tables.bin")


LOOK_UP_WITH_LIMITED_MEMORY = """
import resource, sys, numpy as np, torch
from pathlib import Path
from asymdiffrec.embeddings.serving_tables import ServedTables
from asymdiffrec.embeddings.config import TablesConfig
from tests.serving.test_export import LARGE
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (48 << 20), used + (48 << 20)))
try:
    np.ones(128 << 20, np.uint8)
    print("the memory limit has no effect")
except MemoryError:
    tables = ServedTables(LARGE, TablesConfig(embedding_dim=64), "fp32", Path(sys.argv[1]))
    out = tables.operator(torch.tensor([499_999, 3]), torch.tensor([0, 1, 2]))
    print(out[0, 0].item(), out[1, 0].item(), tables.touch() >= 0)
"""


LARGE = FieldsConfig.model_validate({"fields": {"big": {"type": "id", "num_embeddings": 500_000}}}).to_schema()
"""One field whose fp32 table takes 128 MB"""


def test_table_may_be_larger_than_the_memory_of_the_process(tmp_path: Path) -> None:
    weight = torch.arange(500_000, dtype=torch.float32)[:, None].repeat(1, 64)
    write_tables({"big": weight}, LARGE, TablesConfig(embedding_dim=64), "fp32", tmp_path / "tables.bin")
    command = [sys.executable, "-c", LOOK_UP_WITH_LIMITED_MEMORY, str(tmp_path / "tables.bin")]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.stdout.split() == ["499999.0", "3.0", "True"], result.stderr
