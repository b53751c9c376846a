"""The folders are the architecture: what can be imported, from where, and what ends up in a wheel."""

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
"""Lines of a file that is still one idea"""
BASE = {path.stem for path in (ROOT / "asymdiffrec").glob("*.py") if not path.name.startswith("__")}
"""Modules that every room may import"""
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
FLOORS = {
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
"""Folders and files inside a room, the lowest first: a file imports from its own folder and from lower floors only"""


def module_names(room: str) -> list[str]:
    return [f"asymdiffrec.{name}" for name in files(room)]


def box_of(module: str, boxes: list[str]) -> str:
    """Return the longest of `boxes` that is the module or a folder above it."""
    return max((box for box in boxes if f"{module}.".startswith(f"{box}.")), key=len)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room: str) -> None:
    edges = graph()
    for name in files(room):
        for other in edges[name]:
            assert other.split(".")[0] in {room} | BASE | MAY_IMPORT[room], f"{name} imports {other}"


@pytest.mark.parametrize("room", FLOORS)
def test_imports_inside_a_room_point_down(room: str) -> None:
    floor = {box: level for level, boxes in enumerate(FLOORS[room]) for box in boxes}
    for name, others in graph().items():
        for other in others if name.startswith(room) else ():
            if other.startswith(f"{room}."):
                here, there = box_of(name, list(floor)), box_of(other, list(floor))
                assert here == there or floor[there] < floor[here], f"{name} imports {other}"


def test_every_floor_is_a_folder_or_a_file_that_exists() -> None:
    modules = files()
    for boxes in FLOORS.values():
        for box in (box for level in boxes for box in level):
            assert any(f"{name}.".startswith(f"{box}.") for name in modules), box


def test_modules_import_each_other_in_no_cycle() -> None:
    assert cycles(graph()) == []


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def test_base_modules_import_no_room() -> None:
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


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_are_importable_by_the_project_name(room: str) -> None:
    assert module_names(room)
    for name in module_names(room):
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None
        assert Path(spec.origin).resolve().is_relative_to(ROOT / room)


def test_kernel_code_needs_no_torchrec() -> None:
    code = (
        "import sys; sys.modules['torchrec'] = sys.modules['fbgemm_gpu'] = None\n"
        "import asymdiffrec.diffusion.methods, asymdiffrec.diffusion.forward"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["datasets", "trainer"])
def test_other_packages_of_a_room_name_win(name: str, tmp_path: Path) -> None:
    """From the repository's root, where Python finds our folders too, an installed package of that name is imported."""
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("mine = True\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; print({name}.mine)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "True", result.stderr


def test_wheel_holds_every_module_and_runs_elsewhere(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for room in ("asymdiffrec", *MAY_IMPORT):  # a copy, so that no build folder of an older tree gets into the wheel
        shutil.copytree(ROOT / room, source / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
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
    # Dependencies come from this environment: a path file adds its packages, but not the editable install's own hooks.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    elsewhere.mkdir()
    names = [name for room in MAY_IMPORT for name in module_names(room)]
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {names}]"
    result = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=elsewhere)
    origins = [Path(line) for line in result.stdout.splitlines()]
    assert len(origins) == len(names)
    assert all(origin.is_relative_to(site) for origin in origins)
    command = subprocess.run([python.with_name("asymdiffrec"), "--help"], capture_output=True, text=True, cwd=elsewhere)
    assert command.returncode == 0
    assert "prepare" in command.stdout
