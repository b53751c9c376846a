"""Tests of the folder structure: which folder may import which other folder, and which files a wheel has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.imports import ROOT, cycles, files, graph

MAX_LINES = 350
"""Largest number of lines in a file. A longer file usually has more than one idea"""
BASE = {path.stem for path in (ROOT / "asymdiffrec").glob("*.py") if not path.name.startswith("__")}
"""Modules that every folder may import"""
MAY_IMPORT = {
    "trainer": {"serving", "cluster", "diffusion", "embeddings", "datasets"},
    "serving": {"diffusion", "embeddings", "datasets"},
    "cluster": set(),
    "diffusion": set(),
    "embeddings": {"datasets"},
    "datasets": set(),
}
SCHEMA = {"datasets.schema", "datasets.statistics.statistics", "datasets.statistics.lookups"}
"""Modules of datasets/ that embeddings/ may import"""
LAYERS = {
    "trainer": [
        ["trainer"],
        ["trainer.checkpoints", "trainer.evaluation", "trainer.planning"],
        ["trainer.fit"],
        ["trainer.inference"],
        ["trainer.experiments"],
        ["trainer.commands"],
    ],
    "datasets": [
        ["datasets.files", "datasets.statistics.vocabulary"],
        ["datasets.statistics.lookups"],
        ["datasets.statistics.statistics"],
        ["datasets.schema", "datasets.shards"],
        ["datasets.decoding"],
        ["datasets.batching"],
        ["datasets"],
        ["datasets.statistics"],
        ["datasets.prepare"],
    ],
}
"""Layers inside a top-level folder, the lowest first. Each entry is a subfolder or a file. A file may import from its
own entry and from lower layers only"""


def module_names(folder: str) -> list[str]:
    return [f"asymdiffrec.{name}" for name in files(folder)]


def entry_of(module: str, entries: list[str]) -> str:
    """Return the longest entry that is the module itself or a folder of the module."""
    return max((entry for entry in entries if f"{module}.".startswith(f"{entry}.")), key=len)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_down(folder: str) -> None:
    edges = graph()
    for name in files(folder):
        for other in edges[name]:
            assert other.split(".")[0] in {folder} | BASE | MAY_IMPORT[folder], f"{name} imports {other}"


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_inside_a_folder_point_down(folder: str) -> None:
    layer = {entry: level for level, entries in enumerate(LAYERS[folder]) for entry in entries}
    for name, others in graph().items():
        for other in others if name.startswith(folder) else ():
            if other.startswith(f"{folder}."):
                importer, imported = entry_of(name, list(layer)), entry_of(other, list(layer))
                assert importer == imported or layer[imported] < layer[importer], f"{name} imports {other}"


def test_every_entry_of_a_layer_exists() -> None:
    modules = files()
    for entries in LAYERS.values():
        for entry in (entry for level in entries for entry in level):
            assert any(f"{name}.".startswith(f"{entry}.") for name in modules), entry


def test_modules_import_each_other_in_no_cycle() -> None:
    assert cycles(graph()) == []


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def test_base_modules_import_no_folder() -> None:
    edges = graph()
    assert all(edges[name] <= BASE for name in BASE)


def test_embeddings_import_only_schema_and_statistics_of_datasets() -> None:
    edges = graph()
    imported = {other for name in files("embeddings") for other in edges[name] if other.startswith("datasets")}
    assert imported
    assert imported <= SCHEMA


def test_no_file_is_longer_than_350_lines() -> None:
    paths = [path for folder in (*MAY_IMPORT, "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert len(lines) > len(files())
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_are_importable_by_the_project_name(folder: str) -> None:
    assert module_names(folder)
    for name in module_names(folder):
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None
        assert Path(spec.origin).resolve().is_relative_to(ROOT / folder)


def test_kernel_code_needs_no_torchrec() -> None:
    code = (
        "import sys; sys.modules['torchrec'] = sys.modules['fbgemm_gpu'] = None\n"
        "import asymdiffrec.diffusion.methods, asymdiffrec.diffusion.forward"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["datasets", "trainer"])
def test_other_packages_with_the_name_of_a_folder_win(name: str, tmp_path: Path) -> None:
    """In the root of the repository Python also finds our folders, but an installed package must win."""
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("mine = True\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; print({name}.mine)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "True", result.stderr


def test_wheel_has_every_module_and_runs_in_another_folder(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for folder in (
        "asymdiffrec",
        *MAY_IMPORT,
    ):  # a copy: files of an older build in the tree must not get into the wheel
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")

    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # The path file adds the dependencies of this environment, without the import hooks of the editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    elsewhere.mkdir()
    names = [name for folder in MAY_IMPORT for name in module_names(folder)]
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {names}]"
    result = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=elsewhere)
    origins = [Path(line) for line in result.stdout.splitlines()]
    assert len(origins) == len(names)
    assert all(origin.is_relative_to(site) for origin in origins)
    command = subprocess.run([python.with_name("asymdiffrec"), "--help"], capture_output=True, text=True, cwd=elsewhere)
    assert command.returncode == 0
    assert "prepare" in command.stdout
