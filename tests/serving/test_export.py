"""A damaged or foreign export is not loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asymdiffrec.base import InputError
from asymdiffrec.serving.export import load_export


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
def test_changed_or_absent_file_is_refused(exported: Path, tmp_path: Path, name: str) -> None:
    folder = copy_export(exported, tmp_path)
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
    exported: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = copy_export(exported, tmp_path)
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
